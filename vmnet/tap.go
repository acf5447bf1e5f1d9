package vmnet

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TapOptions say who may open a tap.
type TapOptions struct {
	// UID that the VMM process runs as; 0 is root.
	UID int
	// GID, where it matters beside UID; 0 means it does not.
	GID int
}

// tunDevice is where taps are made.
const tunDevice = "/dev/net/tun"

// makeTap makes a tap that stays without a process that has it open, for a VMM
// that reads and writes packets with a header for offloads. It becomes lasting
// last, after it is marked as ours: an end before that leaves nothing.
func makeTap(name, alias string, opts TapOptions) error {
	fail := func(what string, err error) error { return fmt.Errorf("make tap %s: %s: %w", name, what, err) }
	file, err := os.OpenFile(tunDevice, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail("open", err)
	}
	defer file.Close()
	fd := int(file.Fd())
	req, err := unix.NewIfreq(name)
	if err != nil {
		return fail("name", err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return fail("attach", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETOWNER, opts.UID); err != nil {
		return fail("owner", err)
	}
	if opts.GID != 0 {
		if err := unix.IoctlSetInt(fd, unix.TUNSETGROUP, opts.GID); err != nil {
			return fail("group", err)
		}
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fail("find", err)
	}
	if err := netlink.LinkSetAlias(l, alias); err != nil {
		return fail("alias", err)
	}
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fail("keep", err)
	}
	return nil
}

// probeTun reports why taps can't be made.
func probeTun() error {
	file, err := os.OpenFile(tunDevice, os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is not there: load the kernel module tun", tunDevice)
	}
	if err != nil {
		return err
	}
	defer file.Close()
	req, err := unix.NewIfreq("blxprobe%d")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(int(file.Fd()), unix.TUNSETIFF, req); err != nil {
		return fmt.Errorf("make a tap: %w", err)
	}
	return nil
}
