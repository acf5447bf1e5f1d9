package vmnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// wire is the guest's end of a tap: frames are written and read as they are.
type wire struct {
	file *os.File
	mu   sync.Mutex
	got  [][]byte
}

// headerBytes are before each frame on a tap, for offloads.
const headerBytes = 10

// openTap opens a tap as a VMM does.
func openTap(t testing.TB, name string) *wire {
	t.Helper()
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		t.Fatal(name, err)
	}
	w := &wire{file: os.NewFile(uintptr(fd), name)}
	w.collect(t, headerBytes)
	return w
}

// openLink hears all frames that reach a link of the host.
func openLink(t testing.TB, name string) *wire {
	t.Helper()
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ALL)))
	if err != nil {
		t.Fatal(err)
	}
	ifi, err := net.InterfaceByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: ifi.Index}); err != nil {
		t.Fatal(err)
	}
	w := &wire{file: os.NewFile(uintptr(fd), name)}
	w.collect(t, 0)
	return w
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// collect keeps what arrives until the test ends.
func (w *wire) collect(t testing.TB, skip int) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 1<<16)
		for {
			n, err := w.file.Read(buf)
			if err != nil {
				return
			}
			w.mu.Lock()
			w.got = append(w.got, append([]byte(nil), buf[skip:n]...))
			w.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		_ = w.file.Close()
		<-ended
	})
}

func (w *wire) send(t testing.TB, frame []byte) {
	t.Helper()
	if _, err := w.file.Write(append(make([]byte, headerBytes), frame...)); err != nil && err != syscall.EIO {
		t.Fatal(err)
	}
}

// heard tells how often a frame with a mark arrived.
func (w *wire) heard(mark []byte) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, f := range w.got {
		for i := 0; i+len(mark) <= len(f); i++ {
			if string(f[i:i+len(mark)]) == string(mark) {
				n++
				break
			}
		}
	}
	return n
}

// Makers of packets; each gives bytes and none checks that they make sense.

func mac(s string) []byte {
	hw, err := net.ParseMAC(s)
	if err != nil {
		panic(err)
	}
	return hw
}

func addr(s string) []byte { return netip.MustParseAddr(s).AsSlice() }

func join(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func ether(dst, src string, kind uint16, payload []byte) []byte {
	return join(mac(dst), mac(src), binary.BigEndian.AppendUint16(nil, kind), payload)
}

func arp(op byte, sha, spa, tha, tpa string) []byte {
	return join([]byte{0, 1, 8, 0, 6, 4, 0, op}, mac(sha), addr(spa), mac(tha), addr(tpa))
}

func ip4(src, dst string, protocol byte, payload []byte) []byte {
	h := join([]byte{0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0}, addr(src), addr(dst))
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	binary.BigEndian.PutUint16(h[10:], ^checksum(h))
	return join(h, payload)
}

func ip6(src, dst string, next byte, payload []byte) []byte {
	h := join([]byte{0x60, 0, 0, 0, 0, 0, next, 255}, addr(src), addr(dst))
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	return join(h, payload)
}

func udp(from, to uint16, payload []byte) []byte {
	h := binary.BigEndian.AppendUint16(nil, from)
	h = binary.BigEndian.AppendUint16(h, to)
	h = binary.BigEndian.AppendUint16(h, uint16(8+len(payload)))
	return join(h, []byte{0, 0}, payload)
}

// icmp6 is a message with its checksum.
func icmp6(src, dst string, kind byte, body []byte) []byte {
	m := join([]byte{kind, 0, 0, 0}, body)
	pseudo := join(addr(src), addr(dst), []byte{0, 0, byte(len(m) >> 8), byte(len(m)), 0, 0, 0, 58}, m)
	binary.BigEndian.PutUint16(m[2:], ^checksum(pseudo))
	return m
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		sum += word
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
