package version

import (
	"runtime/debug"
	"testing"
)

func TestOf(t *testing.T) {
	commit := debug.BuildSetting{Key: "vcs.revision", Value: "0123456789abcdef"}
	for _, tc := range []struct {
		text string
		info debug.BuildInfo
		want string
	}{
		{"v1", debug.BuildInfo{Main: debug.Module{Version: "v2"}}, "v1"},
		{"", debug.BuildInfo{Main: debug.Module{Version: "v2"}}, "v2"},
		{"", debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, "unreleased"},
		{"", debug.BuildInfo{Settings: []debug.BuildSetting{commit}}, "0123456789ab"},
		{"", debug.BuildInfo{Settings: []debug.BuildSetting{commit, {Key: "vcs.modified", Value: "true"}}}, "0123456789ab-changed"},
		{"", debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "01"}}}, "unreleased"},
	} {
		if got := of(tc.text, &tc.info); got != tc.want {
			t.Errorf("%+v is %s, want %s", tc, got, tc.want)
		}
	}
	if String() == "" {
		t.Error("no version")
	}
}
