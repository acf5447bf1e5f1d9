//go:build !failpoints

package failpoint

// Hit marks a point.
func Hit(string) {}

// Disk is the hook of the log's disk: none.
var Disk func(point string) error
