package drivertest

import (
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// taps counts the devices of this process.
var taps atomic.Uint32

// Tap makes a persistent tap device for the length of a test and gives its name.
// The test has to run as root.
func Tap(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("blt%d-%d", os.Getpid()%1_000_000, taps.Add(1))
	if err := setTap(name, 1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Who has it open may be ending.
		for end := time.Now().Add(Timeout); ; {
			err := setTap(name, 0)
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Errorf("the tap %s is left: %v", name, err)
				return
			}
			<-time.After(10 * time.Millisecond)
		}
	})
	return name
}

func setTap(name string, persist int) error {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		return err
	}
	return unix.IoctlSetInt(fd, unix.TUNSETPERSIST, persist)
}
