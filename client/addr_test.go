package client

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/blixard/blixard/internal/localpath"
	"github.com/blixard/blixard/internal/problem"
)

func userWith(env map[string]string) localpath.User {
	return localpath.User{UID: 1000, Env: func(name string) string { return env[name] }}
}

func TestAddresses(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, tc := range []struct{ addr, env, path, code string }{
		{addr: "unix:/run/x", path: "/run/x"},
		{addr: "unix:///run/x", path: "/run/x"},
		{addr: "unix:s", path: filepath.Join(dir, "s")},
		{env: "unix:/run/env", path: "/run/env"},
		{addr: "unix:/run/x", env: "unix:/run/env", path: "/run/x"},
		{addr: "unix:", code: "addr.invalid"},
		{addr: "host", code: "addr.invalid"},
		{env: "host", code: "addr.invalid"},
		{addr: "http://host:1", code: "addr.invalid"},
		{addr: "/run/x", code: "addr.invalid"},
		{addr: "./x", code: "addr.invalid"},
		{addr: "host:0", code: "addr.invalid"},
		{addr: "host:65536", code: "addr.invalid"},
		{addr: "https://me@host:7", code: "addr.invalid"},
		{addr: "https://host:7/path", code: "addr.invalid"},
		{addr: "https://:7", code: "addr.invalid"},
		{addr: "https://host:7", code: "credentials.missing"},
		{addr: "[::1]:7", code: "credentials.missing"},
	} {
		to, err := resolve(tc.addr, "", userWith(map[string]string{EnvAddr: tc.env}))
		path := to.path
		if tc.code == "" && (err != nil || path != tc.path) {
			t.Errorf("%q (%q in the environment): %q, %v", tc.addr, tc.env, path, err)
		}
		if tc.code != "" && (!problem.HasCode(err, tc.code) || problem.From(err).Hint == "") {
			t.Errorf("%q (%q in the environment): %v, wanted %s with a hint", tc.addr, tc.env, err, tc.code)
		}
	}
}

// TestLocalNodeIsFound: without an address, the user's own socket is taken if one
// is there, and it is the one that is named if none is.
func TestLocalNodeIsFound(t *testing.T) {
	dir := t.TempDir()
	u := userWith(map[string]string{"XDG_RUNTIME_DIR": dir})
	own := filepath.Join(dir, "blixard", "blixard.sock")
	if err := os.MkdirAll(filepath.Dir(own), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", own)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if to, err := resolve("", "", u); err != nil || to.path != own {
		t.Errorf("found %s, %v", to, err)
	}
	if LocalSocket() == "" {
		t.Error("this user has no socket")
	}
}

// TestSocketThatCantBeUsed: what is no node's socket is told apart by what a
// person does about it.
func TestSocketThatCantBeUsed(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(dir, "left")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: left, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(dir, "missing"), left, file} {
		if c, err := dialSocket(t.Context(), path); !problem.HasCode(err, "node.not_running") || problem.From(err).Hint == "" {
			t.Errorf("%s: %v, %v", path, c, err)
		}
	}
}
