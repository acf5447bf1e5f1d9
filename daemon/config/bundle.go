package config

import "path/filepath"

// BundleDirs gives where the guest bundle may be, the best place first:
// bundle_dir alone when it is set; else beside the program (where make build and
// an archive of it put one), in the share directory next to the program's (where
// a package does), and in cache_dir (where `blixard bundle build` does).
func BundleDirs(cfg Config, executable string) []string {
	if cfg.BundleDir != "" {
		return []string{cfg.BundleDir}
	}
	dirs := []string{DefaultBundleDir(cfg)}
	if executable != "" {
		dir := filepath.Dir(executable)
		dirs = append([]string{filepath.Join(dir, "bundle"), filepath.Join(dir, "..", "share", "blixard", "bundle")}, dirs...)
	}
	return dirs
}

// DefaultBundleDir is where a bundle is built when no place was named.
func DefaultBundleDir(cfg Config) string {
	if cfg.BundleDir != "" {
		return cfg.BundleDir
	}
	return filepath.Join(cfg.CacheDir, "bundle")
}
