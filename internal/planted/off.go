//go:build !planted

package planted

// Is tells whether the bug is built in.
func Is(Bug) bool { return false }
