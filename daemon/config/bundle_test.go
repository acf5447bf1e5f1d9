package config

import (
	"slices"
	"testing"
)

func TestBundleDirs(t *testing.T) {
	cfg := Config{CacheDir: "/c"}
	if got := BundleDirs(cfg, "/opt/bin/blixard"); !slices.Equal(got, []string{"/opt/bin/bundle", "/opt/share/blixard/bundle", "/c/bundle"}) {
		t.Errorf("searched in %q", got)
	}
	if got := BundleDirs(cfg, ""); !slices.Equal(got, []string{"/c/bundle"}) {
		t.Errorf("searched in %q", got)
	}
	cfg.BundleDir = "/b"
	if got := BundleDirs(cfg, "/opt/bin/blixard"); !slices.Equal(got, []string{"/b"}) || DefaultBundleDir(cfg) != "/b" {
		t.Errorf("searched in %q", got)
	}
}
