//go:build linux

package pid1

import (
	"io"
	"os"
	"syscall"
	"time"

	"github.com/blixard/blixard/guest/wire"
)

const (
	portsDir = "/sys/class/virtio-ports"
	// The port's name comes some moments after its device: looked for every portPoll, more
	// rarely once portPatience has gone, for a port may be plugged in later.
	portPoll     = time.Millisecond
	portPollSlow = 100 * time.Millisecond
	portPatience = 2 * time.Second
)

// findPort returns the device of the port called name below dir, or "".
func findPort(dir, name string) string {
	for _, p := range listSmall(dir) {
		if readLine(dir+"/"+p+"/name") == name {
			return "/dev/" + p
		}
	}
	return ""
}

// waitPort waits for the channel's port and returns its device.
func waitPort() string {
	begin := time.Now()
	for {
		if path := findPort(portsDir, wire.PortName); path != "" {
			return path
		}
		if time.Since(begin) < portPatience {
			time.Sleep(portPoll)
		} else {
			time.Sleep(portPollSlow)
		}
	}
}

// port is a virtio-serial port. Reads wait through the absence of a host, which the kernel shows as end
// of file; onHangup is called each time a host was found to be gone.
type port struct {
	f        *os.File
	raw      syscall.RawConn
	onHangup func()
}

func newPort(f *os.File) (*port, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &port{f: f, raw: raw}, nil
}

// Read implements io.Reader. It never returns io.EOF.
func (p *port) Read(b []byte) (int, error) {
	var n int
	var err error
	gone := false
	rawErr := p.raw.Read(func(fd uintptr) bool {
		n, err = ignoringEINTR(func() (int, error) { return syscall.Read(int(fd), b) })
		switch {
		case err == syscall.EAGAIN:
			return false
		case err == nil && n == 0:
			// No host. The kernel wakes the poller when one comes.
			if !gone && p.onHangup != nil {
				p.onHangup()
			}
			gone = true
			return false
		}
		return true
	})
	if rawErr != nil {
		return 0, rawErr
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (p *port) Write(b []byte) (int, error)        { return p.f.Write(b) }
func (p *port) SetWriteDeadline(t time.Time) error { return p.f.SetWriteDeadline(t) }

// duplex is what a channel runs over: a port, or a socket in tests.
type duplex interface {
	io.ReadWriter
	SetWriteDeadline(t time.Time) error
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != syscall.EINTR {
			return n, err
		}
	}
}
