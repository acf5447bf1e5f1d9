//go:build !amd64

package kernel

// HostTSCKHz is zero: only x86 has a time stamp counter.
func HostTSCKHz() uint32 { return 0 }
