// Package boottime reads CLOCK_BOOTTIME, the clock of leases: it never jumps
// with the wall clock and goes on while the host is suspended.
//
// It is not a source of dates, and its values mean nothing on another host or
// after a reboot.
package boottime
