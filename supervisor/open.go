package supervisor

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/jail"
)

const tunDevice = "/dev/net/tun"

// opened are descriptors for a process.
type opened struct {
	fds []int
	// files say which files the last of them are, in their order.
	files []jail.File
}

// openAll opens what a process is handed beside its sockets, of which there are
// first descriptors before. On an error nothing is left open.
func openAll(cmd command, first int) (o opened, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll(o.fds))
		}
	}()
	for _, name := range cmd.taps {
		fd, err := openTap(name)
		if err != nil {
			return o, fmt.Errorf("tap %s: %w", name, err)
		}
		o.fds = append(o.fds, fd)
	}
	for _, f := range cmd.files {
		fd, st, err := openFile(f)
		if err != nil {
			return o, fmt.Errorf("file %s: %w", f.GetPath(), err)
		}
		o.files = append(o.files, jail.File{FD: first + len(o.fds), Path: f.GetPath(), Device: st.Dev, Inode: st.Ino})
		o.fds = append(o.fds, fd)
	}
	return o, nil
}

// openFile opens a regular file. A symlink is not followed, and what is no file
// does not block.
func openFile(f *blixardv1.SpawnFile) (int, unix.Stat_t, error) {
	flags := unix.O_RDWR
	if f.GetReadOnly() {
		flags = unix.O_RDONLY
	}
	var st unix.Stat_t
	fd, err := unix.Open(f.GetPath(), flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, st, err
	}
	err = unix.Fstat(fd, &st)
	if err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = errors.New("it is not a regular file")
	}
	if err == nil {
		err = unix.SetNonblock(fd, false)
	}
	if err != nil {
		return -1, st, errors.Join(err, unix.Close(fd))
	}
	return fd, st, nil
}

// openTap opens a persistent tap device. The kernel would make one that is not
// there: that one would not be persistent, which gives it away and lets it vanish
// on close.
func openTap(name string) (int, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", tunDevice, err)
	}
	if err := attachTap(fd, name); err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

var (
	errNoTap   = errors.New("there is no persistent tap device of that name")
	errTapBusy = errors.New("another process has it open")
)

func attachTap(fd int, name string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	if err := exists(name); err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	if errors.Is(err, unix.EBUSY) {
		return errTapBusy
	}
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	if err := unix.IoctlIfreq(fd, unix.TUNGETIFF, ifr); err != nil {
		return fmt.Errorf("look at it: %w", err)
	}
	if flags := ifr.Uint16(); flags&iffPersist == 0 || ifr.Name() != name {
		return errNoTap
	}
	return nil
}

// iffPersist is IFF_PERSIST of linux/if_tun.h.
const iffPersist = 0x0800

// exists looks for a network device in this process's own network.
func exists(name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	err = unix.IoctlIfreq(s, unix.SIOCGIFINDEX, ifr)
	if errors.Is(err, unix.ENODEV) {
		return errNoTap
	}
	return err
}
