//go:build linux

package pid1

import (
	"encoding/binary"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// What a machine says to its kernel about the network, as rtnetlink messages. They are written by hand: a
// guest needs four of them, and a library for all costs it more time to start than the whole set-up takes.

// netlinkBuffer is for one batch of requests or answers. An answer about a link takes about 1.5 KiB, and the
// kernel never sends more at once than the buffer it is given.
const netlinkBuffer = 32 << 10

// native is the byte order of netlink.
var native = binary.NativeEndian

// request is a netlink message in the making; attributes are appended to its end.
type request struct{ b []byte }

// newRequest begins a message of a type with its fixed part.
func newRequest(typ, flags uint16, fixed []byte) *request {
	b := make([]byte, unix.SizeofNlMsghdr, 128)
	native.PutUint16(b[4:], typ)
	native.PutUint16(b[6:], flags|unix.NLM_F_REQUEST)
	return &request{b: append(b, fixed...)}
}

// attribute appends one, padded to four bytes.
func (r *request) attribute(typ uint16, value []byte) {
	r.b = native.AppendUint16(r.b, uint16(unix.SizeofRtAttr+len(value)))
	r.b = native.AppendUint16(r.b, typ)
	r.b = append(r.b, value...)
	for len(r.b)%unix.NLMSG_ALIGNTO != 0 {
		r.b = append(r.b, 0)
	}
}

func (r *request) number(typ uint16, v uint32) {
	r.attribute(typ, native.AppendUint32(nil, v))
}

// netlink is a socket to the kernel's routing tables. Not safe for concurrent use.
type netlink struct {
	fd  int
	buf []byte
}

func openNetlink() (*netlink, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("netlink socket", err)
	}
	return &netlink{fd: fd, buf: make([]byte, netlinkBuffer)}, nil
}

func (n *netlink) close() { _ = unix.Close(n.fd) }

// do sends a request and hands each message of the answer on, until the kernel says that it is done.
func (n *netlink) do(r *request, each func(typ uint16, body []byte)) error {
	native.PutUint32(r.b, uint32(len(r.b)))
	if err := unix.Sendto(n.fd, r.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("netlink send", err)
	}
	for {
		size, err := ignoringEINTR(func() (int, error) { return unix.Read(n.fd, n.buf) })
		if err != nil {
			return os.NewSyscallError("netlink receive", err)
		}
		done, err := walkMessages(n.buf[:size], each)
		if done || err != nil {
			return err
		}
	}
}

// walkMessages looks at what one read of a socket gave. done means that no more follows; an error is the
// kernel's refusal.
func walkMessages(b []byte, each func(typ uint16, body []byte)) (done bool, err error) {
	for len(b) >= unix.SizeofNlMsghdr {
		size, typ := int(native.Uint32(b)), native.Uint16(b[4:])
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return true, unix.EBADMSG
		}
		body := b[unix.SizeofNlMsghdr:size]
		b = b[min(len(b), align(size)):]
		switch typ {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return true, unix.EBADMSG
			}
			if errno := -int32(native.Uint32(body)); errno != 0 {
				return true, unix.Errno(errno)
			}
			return true, nil
		default:
			if each != nil {
				each(typ, body)
			}
		}
	}
	return false, nil
}

// walkAttributes looks at the attributes that follow a message's fixed part.
func walkAttributes(b []byte, each func(typ uint16, value []byte)) {
	for len(b) >= unix.SizeofRtAttr {
		size, typ := int(native.Uint16(b)), native.Uint16(b[2:])
		if size < unix.SizeofRtAttr || size > len(b) {
			return
		}
		each(typ, b[unix.SizeofRtAttr:size])
		b = b[min(len(b), align(size)):]
	}
}

func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// nic is one as the kernel has it; its index is zero for none.
type nic struct {
	index uint32
	name  string
}

// nicByMAC finds the NIC with a hardware address.
func (n *netlink) nicByMAC(mac [6]byte) (nic, error) {
	const indexAt = 4
	var found nic
	r := newRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP, make([]byte, unix.SizeofIfInfomsg))
	err := n.do(r, func(typ uint16, body []byte) {
		if typ != unix.RTM_NEWLINK || len(body) < unix.SizeofIfInfomsg {
			return
		}
		l, same := nic{index: native.Uint32(body[indexAt:])}, false
		walkAttributes(body[unix.SizeofIfInfomsg:], func(typ uint16, value []byte) {
			switch typ {
			case unix.IFLA_ADDRESS:
				same = string(value) == string(mac[:])
			case unix.IFLA_IFNAME:
				l.name = strings.TrimRight(string(value), "\x00")
			}
		})
		if same {
			found = l
		}
	})
	return found, err
}

// linkUp sets a link's MTU, unless it is zero, and brings it up.
func (n *netlink) linkUp(index, mtu uint32) error {
	const indexAt, flagsAt, changeAt = 4, 8, 12
	info := make([]byte, unix.SizeofIfInfomsg)
	native.PutUint32(info[indexAt:], index)
	native.PutUint32(info[flagsAt:], unix.IFF_UP)
	native.PutUint32(info[changeAt:], unix.IFF_UP)
	r := newRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK, info)
	if mtu != 0 {
		r.number(unix.IFLA_MTU, mtu)
	}
	return n.do(r, nil)
}

// addAddress gives a link an address; one that it has already is no error.
func (n *netlink) addAddress(index uint32, p netip.Prefix) error {
	addr := p.Addr()
	info := []byte{family(addr), byte(p.Bits()), 0, unix.RT_SCOPE_UNIVERSE}
	if addr.Is6() {
		info[2] = unix.IFA_F_NODAD
	}
	info = native.AppendUint32(info, index)
	r := newRequest(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, info)
	r.attribute(unix.IFA_LOCAL, addr.AsSlice())
	r.attribute(unix.IFA_ADDRESS, addr.AsSlice())
	if addr.Is4() && p.Bits() < 31 {
		last := addr.As4()
		host := uint32(1)<<(32-p.Bits()) - 1
		binary.BigEndian.PutUint32(last[:], binary.BigEndian.Uint32(last[:])|host)
		r.attribute(unix.IFA_BROADCAST, last[:])
	}
	return n.do(r, nil)
}

// addDefaultRoute sends what has no better way to a gateway on a link, whatever the link's own subnets are.
// Of several such routes the one with the lowest metric counts.
func (n *netlink) addDefaultRoute(index uint32, gateway netip.Addr, metric uint32) error {
	info := make([]byte, unix.SizeofRtMsg)
	info[0] = family(gateway)
	info[4] = unix.RT_TABLE_MAIN
	info[5] = unix.RTPROT_BOOT
	info[6] = unix.RT_SCOPE_UNIVERSE
	info[7] = unix.RTN_UNICAST
	native.PutUint32(info[8:], unix.RTNH_F_ONLINK)
	r := newRequest(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, info)
	r.attribute(unix.RTA_GATEWAY, gateway.AsSlice())
	r.number(unix.RTA_OIF, index)
	r.number(unix.RTA_PRIORITY, metric)
	return n.do(r, nil)
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
