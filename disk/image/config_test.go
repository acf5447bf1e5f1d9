package image

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/blixard/blixard/internal/problem"
)

func TestConfigRefused(t *testing.T) {
	type object = map[string]any
	id := sha256Of(nil)
	many := func(n int, word string) []string {
		var all []string
		for range n {
			all = append(all, word)
		}
		return all
	}
	labels := map[string]string{}
	for n := range wordsMax + 1 {
		labels[strings.Repeat("l", n+1)[n/2:]+string(rune('a'+n%26))+strings.Repeat("x", n%7)] = ""
	}
	for name, c := range map[string]struct {
		change func(top, config object)
		code   string // none: it is taken
	}{
		"as it should be":   {func(_, _ object) {}, ""},
		"empty lists":       {func(_, c object) { c["Env"], c["Cmd"], c["Labels"] = nil, nil, nil }, ""},
		"signal by number":  {func(_, c object) { c["StopSignal"] = "9" }, ""},
		"other system":      {func(t, _ object) { t["os"] = "windows" }, "image.architecture"},
		"no system":         {func(t, _ object) { delete(t, "os") }, "image.architecture"},
		"other processor":   {func(t, _ object) { t["architecture"] = strings.Repeat("arm", 1000) }, "image.architecture"},
		"few layers":        {func(t, _ object) { t["rootfs"] = object{"diff_ids": []string{}} }, "image.config"},
		"odd layer":         {func(t, _ object) { t["rootfs"] = object{"diff_ids": []string{"sha256:x"}} }, "image.config"},
		"odd type":          {func(_, c object) { c["Env"] = 5 }, "image.config"},
		"odd signal":        {func(_, c object) { c["StopSignal"] = "SIGNAL" }, "image.config"},
		"variable":          {func(_, c object) { c["Env"] = []string{"x"} }, "image.config"},
		"nameless variable": {func(_, c object) { c["Env"] = []string{"=x"} }, "image.config"},
		"zero byte":         {func(_, c object) { c["Cmd"] = []string{"a\x00b"} }, "image.config"},
		"directory":         {func(_, c object) { c["WorkingDir"] = "tmp" }, "image.config"},
		"many words":        {func(_, c object) { c["Cmd"] = many(wordsMax+1, "a") }, "image.config"},
		"long word":         {func(_, c object) { c["User"] = strings.Repeat("u", wordBytesMax+1) }, "image.config"},
		"long words":        {func(_, c object) { c["Env"] = many(40, "A="+strings.Repeat("x", 10_000)) }, "image.config"},
		"many labels":       {func(_, c object) { c["Labels"] = labels }, "image.config"},
		"long":              {func(_, c object) { c["Comment"] = strings.Repeat("x", configBytesMax) }, "image.config"},
	} {
		config := object{"Env": []string{"PATH=/bin"}, "Cmd": []string{"/bin/sh"}, "User": "root", "StopSignal": "SIGINT"}
		top := object{"os": "linux", "architecture": "amd64", "config": config, "rootfs": object{"diff_ids": []string{id}}}
		c.change(top, config)
		raw, err := json.Marshal(top)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = parseConfig(raw, 1)
		if c.code == "" && err != nil || c.code != "" && (!problem.HasCode(err, c.code) || len(err.Error()) > 500) {
			t.Errorf("%s: %.300v", name, err)
		}
	}
	if _, _, err := parseConfig([]byte("x"), 0); !problem.HasCode(err, "image.config") {
		t.Error(err)
	}
}

func TestSignals(t *testing.T) {
	for text, want := range map[string]uint32{
		"": 0, "15": 15, "SIGTERM": 15, "TERM": 15, "sigterm": 15, "SIGKILL": 9, "SIGRTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-2": 62, "SIGRTMAX": 64, "64": 64, "SIGUSR1": 10,
	} {
		if n, err := parseSignal(text); err != nil || n != want {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
	for _, text := range []string{"0", "65", "-1", "SIG", "SIGNOTHING", "RTMIN-1", "RTMIN+31", "RTMIN3", "RTMIN+", "RTMIN+x", "RTMAX+1", " 15", "SIGSIGTERM", "1000000"} {
		if n, err := parseSignal(text); !problem.HasCode(err, "image.config") {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
}
