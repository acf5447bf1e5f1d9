package localpath

import (
	"slices"
	"testing"
)

func TestPaths(t *testing.T) {
	for _, tc := range []struct {
		name                              string
		uid                               int
		env                               map[string]string
		data, cache, config, socket, last string
	}{
		{
			"root", 0,
			map[string]string{"HOME": "/root", "XDG_RUNTIME_DIR": "/run/user/0", "XDG_DATA_HOME": "/x"},
			"/var/lib/blixard", "/var/cache/blixard", "/etc/blixard/blixard.toml", "/run/blixard/blixard.sock", "/run/blixard/blixard.sock",
		},
		{
			"user with XDG", 1000,
			map[string]string{"HOME": "/home/a", "XDG_RUNTIME_DIR": "/run/user/1000", "XDG_DATA_HOME": "/x", "XDG_CONFIG_HOME": "relative"},
			"/x/blixard", "/home/a/.cache/blixard", "/home/a/.config/blixard/blixard.toml", "/run/user/1000/blixard/blixard.sock", "/run/blixard/blixard.sock",
		},
		{
			"user without", 1000,
			map[string]string{"HOME": "/home/a"},
			"/home/a/.local/share/blixard", "/home/a/.cache/blixard", "/home/a/.config/blixard/blixard.toml",
			"/home/a/.local/share/blixard/blixard.sock", "/run/blixard/blixard.sock",
		},
		{
			"no home", 7, nil,
			"/nonexistent/.local/share/blixard", "/nonexistent/.cache/blixard", "/nonexistent/.config/blixard/blixard.toml",
			"/nonexistent/.local/share/blixard/blixard.sock", "/run/blixard/blixard.sock",
		},
	} {
		u := User{UID: tc.uid, Env: func(name string) string { return tc.env[name] }}
		got := []string{u.DataDir(), u.CacheDir(), u.ConfigFile(), u.Socket(u.DataDir()), u.Sockets()[len(u.Sockets())-1]}
		if want := []string{tc.data, tc.cache, tc.config, tc.socket, tc.last}; !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", tc.name, got, want)
		}
	}
	if u := Current(); u.DataDir() == "" {
		t.Error("the current user has no data directory")
	}
}
