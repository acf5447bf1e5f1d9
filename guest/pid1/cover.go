//go:build linux && guestcover

package pid1

import (
	"runtime/coverage"

	"golang.org/x/sys/unix"
)

// coverDir is on the VM's writable disk. Process 1 never exits, so nothing of the runtime's own writes there.
const coverDir = "/blixard-cover"

// saveCounters writes which of this program's statements ran: for `make cover`, whose blixard-guest is built
// with -cover.
func saveCounters(con *console) {
	_ = unix.Mount("", "/", "", unix.MS_REMOUNT, "") // an image's init makes it read-only at its end
	if err := makeDir(coverDir); err != nil {
		con.say("coverage: %v", err)
		return
	}
	for _, write := range []func(string) error{coverage.WriteMetaDir, coverage.WriteCountersDir} {
		if err := write(coverDir); err != nil {
			con.say("coverage: %v", err)
		}
	}
}
