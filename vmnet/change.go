package vmnet

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// change is one difference between what the kernel has and what it shall have.
type change struct {
	// link it is about, and what differs, in a sentence.
	link, what string
	// remove is done before the rules change, everything else after.
	remove bool
	do     func() error
}

// changes gives what makes the difference disappear, in an order that works: what
// goes first loses its members first, what comes has its bridge before its ports.
// taps that are not there are not made: they are when their VM starts.
func changes(want objects, have *kernel) []change {
	var out []change
	gone := func(name string) bool { _, wanted := want.links[name]; return !wanted }
	for n := range sortedKeys(have.objects.neighbours) {
		if _, wanted := want.neighbours[n]; !wanted && !gone(n.link) {
			out = append(out, change{n.link, fmt.Sprintf("neighbour %s on %s should not be there", n.ip, n.link), true, func() error { return setNeighbour(n, "", have.index) }})
		}
	}
	for f := range sortedKeys(have.objects.forwarding) {
		if _, wanted := want.forwarding[f]; !wanted && !gone(f.link) {
			out = append(out, change{f.link, fmt.Sprintf("forwarding entry %s of %s should not be there", f.mac, f.link), true, func() error { return deleteForward(f, have.objects.forwarding[f], have.index) }})
		}
	}
	for a := range sortedKeys(have.objects.addresses) {
		if !want.addresses[a] && !gone(a.link) {
			out = append(out, change{a.link, fmt.Sprintf("address %s of %s should not be there", a.prefix, a.link), true, func() error { return setAddress(a, false) }})
		}
	}
	for _, kind := range []string{kindTap, kindOverlay, kindBridge} {
		for name := range sortedKeys(have.objects.links) {
			if l := have.objects.links[name]; l.kind == kind && (gone(name) || !remakes(want.links[name], l).isZero()) {
				out = append(out, change{name, fmt.Sprintf("%s %s should not be there", l.kind, name), true, func() error { return deleteLink(name) }})
			}
		}
	}
	out = append(out, linkChanges(want, have)...)
	for _, path := range sysctlOrder(want.sysctls) {
		value := want.sysctls[path]
		if link := sysctlLink(path); want.links[link].kind == kindTap && have.index[link] == 0 {
			continue
		}
		if is := readSysctl(path); is != value {
			out = append(out, change{sysctlLink(path), fmt.Sprintf("sysctl %s is %q, not %q", path, is, value), false, func() error { return writeOptional(path, value) }})
		}
	}
	for a := range sortedKeys(want.addresses) {
		if !have.objects.addresses[a] {
			out = append(out, change{a.link, fmt.Sprintf("address %s of %s is missing", a.prefix, a.link), false, func() error { return setAddress(a, true) }})
		}
	}
	for n := range sortedKeys(want.neighbours) {
		if mac := want.neighbours[n]; have.objects.neighbours[n] != mac {
			out = append(out, change{n.link, fmt.Sprintf("neighbour %s on %s is missing", n.ip, n.link), false, func() error { return setNeighbour(n, mac, nil) }})
		}
	}
	for f := range sortedKeys(want.forwarding) {
		if want.links[f.link].kind == kindTap && have.index[f.link] == 0 {
			continue
		}
		node := want.forwarding[f]
		if is, there := have.objects.forwarding[f]; !there || is != node {
			out = append(out, change{f.link, fmt.Sprintf("forwarding entry %s of %s is missing", f.mac, f.link), false, func() error { return setForward(f, node) }})
		}
	}
	return out
}

// sysctlOrder sets what concerns all links after what concerns one: turning on
// forwarding forgets the routers that a link was told of unless its accept_ra says
// otherwise by then.
func sysctlOrder(sysctls map[string]string) []string {
	paths := slices.Collect(sortedKeys(sysctls))
	slices.SortStableFunc(paths, func(a, b string) int {
		return cmp.Compare(len(sysctlLink(a))-len(strings.TrimPrefix(sysctlLink(a), "all")), len(sysctlLink(b))-len(strings.TrimPrefix(sysctlLink(b), "all")))
	})
	return paths
}

// sysctlLink gives the link that a sysctl is of.
func sysctlLink(path string) string {
	if parts := strings.Split(path, "/"); len(parts) == 5 && parts[2] == "conf" {
		return parts[3]
	}
	return ""
}

// writeOptional writes a sysctl, where it is there: a kernel without IPv6 has not
// all of them.
func writeOptional(path, value string) error {
	err := writeSysctl(path, value)
	if errors.Is(err, os.ErrNotExist) && strings.HasPrefix(path, "net/ipv6/") {
		return nil
	}
	return err
}

// remade is what a link can only have from its making.
type remade struct {
	kind         string
	vni, udpPort int
	local        netip.Addr
}

func (r remade) isZero() bool { return r == remade{} }

// remakes gives what must be made anew of a link; zero for nothing.
func remakes(want, have link) remade {
	if want.kind == have.kind && want.vni == have.vni && want.udpPort == have.udpPort && want.local == have.local {
		return remade{}
	}
	return remade{kind: cmp.Or(want.kind, "none"), vni: want.vni, udpPort: want.udpPort, local: want.local}
}

func linkChanges(want objects, have *kernel) []change {
	var out []change
	for _, kind := range []string{kindBridge, kindOverlay, kindTap} {
		for name := range sortedKeys(want.links) {
			w := want.links[name]
			if w.kind != kind {
				continue
			}
			h, there := have.objects.links[name]
			if there && remakes(w, h).isZero() {
				if what := linkDiffers(w, h); what != "" {
					out = append(out, change{name, fmt.Sprintf("%s %s: %s", kind, name, what), false, func() error { return setLink(name, w, h) }})
				}
				continue
			}
			if kind == kindTap {
				continue
			}
			out = append(out, change{name, fmt.Sprintf("%s %s is missing", kind, name), false, func() error {
				if err := makeLink(name, w); err != nil {
					return err
				}
				return setLink(name, w, link{})
			}})
		}
	}
	return out
}

// linkDiffers says how a link is not as it shall be.
func linkDiffers(want, have link) string {
	var out []string
	if want.mtu != have.mtu {
		out = append(out, fmt.Sprintf("its MTU is %d, not %d", have.mtu, want.mtu))
	}
	if want.mac != "" && want.mac != have.mac {
		out = append(out, fmt.Sprintf("its MAC is %s, not %s", have.mac, want.mac))
	}
	if want.up != have.up {
		out = append(out, "it is down")
	}
	if want.bridge != have.bridge {
		out = append(out, fmt.Sprintf("it is a port of %q, not of %q", have.bridge, want.bridge))
	} else if want.port != have.port {
		out = append(out, "its flags as a port are other ones")
	}
	if want.alias != have.alias {
		out = append(out, fmt.Sprintf("its alias is %q", have.alias))
	}
	return strings.Join(out, ", ")
}

// makeLink makes a bridge or an overlay, down. Until it has its alias it is known
// as ours by its name and MAC. A bridge gets its MTU afterwards: only so does it
// keep it whatever ports it has.
func makeLink(name string, l link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	hw, err := net.ParseMAC(l.mac)
	if err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	attrs.HardwareAddr = hw
	no := false
	var made netlink.Link = &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &no}
	if l.kind == kindOverlay {
		attrs.MTU = l.mtu
		made = &netlink.Vxlan{LinkAttrs: attrs, VxlanId: l.vni, Port: l.udpPort, SrcAddr: l.local.AsSlice(), Learning: false}
	}
	if err := netlink.LinkAdd(made); err != nil {
		return fmt.Errorf("make %s: %w", name, err)
	}
	return nil
}

// setLink sets what differs. The flags as a port are set before it is up.
func setLink(name string, want, have link) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("set %s: %w", name, err)
	}
	set := func(differs bool, what string, do func() error) {
		if err == nil && differs {
			if err = do(); err != nil {
				err = fmt.Errorf("set %s of %s: %w", what, name, err)
			}
		}
	}
	set(want.alias != l.Attrs().Alias, "alias", func() error { return netlink.LinkSetAlias(l, want.alias) })
	set(want.mtu != have.mtu, "MTU", func() error { return netlink.LinkSetMTU(l, want.mtu) })
	set(want.mac != "" && want.mac != have.mac, "MAC", func() error {
		hw, err := net.ParseMAC(want.mac)
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(l, hw)
	})
	set(want.bridge != have.bridge, "bridge", func() error {
		bridge, err := netlink.LinkByName(want.bridge)
		if err != nil {
			return err
		}
		return netlink.LinkSetMaster(l, bridge)
	})
	set(want.bridge != "" && (want.port != have.port || want.bridge != have.bridge), "port", func() error { return setPort(l, want.port) })
	set(want.up && !have.up, "state", func() error { return netlink.LinkSetUp(l) })
	return err
}

// setPort sets how a bridge treats a port.
func setPort(l netlink.Link, f portFlags) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(l.Attrs().Index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	fields := f.fields()
	for _, number := range slices.Sorted(maps.Keys(fields)) {
		value := []byte{0}
		if *fields[number] {
			value[0] = 1
		}
		info.AddRtAttr(number, value)
	}
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// deleteLink removes a link of ours; one that is gone already is fine.
func deleteLink(name string) error {
	l, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

func setAddress(a address, present bool) error {
	l, err := netlink.LinkByName(a.link)
	if err != nil {
		return fmt.Errorf("address %s of %s: %w", a.prefix, a.link, err)
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: a.prefix.Addr().AsSlice(), Mask: net.CIDRMask(a.prefix.Bits(), a.prefix.Addr().BitLen())}}
	if a.prefix.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD
	}
	if present {
		err = netlink.AddrReplace(l, addr)
	} else if err = netlink.AddrDel(l, addr); errors.Is(err, unix.EADDRNOTAVAIL) {
		err = nil
	}
	if err != nil {
		return fmt.Errorf("address %s of %s: %w", a.prefix, a.link, err)
	}
	return nil
}

// indexOf finds a link's index, in what was read or now.
func indexOf(name string, known map[string]int) (int, error) {
	if i := known[name]; i > 0 {
		return i, nil
	}
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, err
	}
	return l.Attrs().Index, nil
}

// setNeighbour makes a neighbour permanent; without a MAC it is removed.
func setNeighbour(n neighbour, mac string, known map[string]int) error {
	index, err := indexOf(n.link, known)
	if err != nil {
		return fmt.Errorf("neighbour %s on %s: %w", n.ip, n.link, err)
	}
	entry := &netlink.Neigh{LinkIndex: index, IP: n.ip.AsSlice(), State: netlink.NUD_PERMANENT, Family: unix.AF_INET}
	if n.ip.Is6() {
		entry.Family = unix.AF_INET6
	}
	if mac == "" {
		err = netlink.NeighDel(entry)
	} else if entry.HardwareAddr, err = net.ParseMAC(mac); err == nil {
		err = netlink.NeighSet(entry)
	}
	if err != nil && (mac != "" || !errors.Is(err, unix.ENOENT)) {
		return fmt.Errorf("neighbour %s on %s: %w", n.ip, n.link, err)
	}
	return nil
}

// forwardEntry gives an entry of a forwarding table as netlink has it.
func forwardEntry(f forward, node netip.Addr, known map[string]int) (*netlink.Neigh, error) {
	index, err := indexOf(f.link, known)
	if err != nil {
		return nil, err
	}
	hw, err := net.ParseMAC(f.mac)
	if err != nil {
		return nil, err
	}
	entry := &netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, HardwareAddr: hw, State: netlink.NUD_NOARP, Flags: netlink.NTF_MASTER}
	if f.overlay {
		entry.State, entry.Flags, entry.IP = netlink.NUD_PERMANENT, netlink.NTF_SELF, node.AsSlice()
	}
	return entry, nil
}

func setForward(f forward, node netip.Addr) error {
	entry, err := forwardEntry(f, node, nil)
	if err == nil {
		err = netlink.NeighSet(entry)
	}
	if err != nil {
		return fmt.Errorf("forwarding entry %s of %s: %w", f.mac, f.link, err)
	}
	return nil
}

func deleteForward(f forward, node netip.Addr, known map[string]int) error {
	entry, err := forwardEntry(f, node, known)
	if err == nil {
		err = netlink.NeighDel(entry)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("forwarding entry %s of %s: %w", f.mac, f.link, err)
	}
	return nil
}
