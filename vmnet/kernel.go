package vmnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// kernel is what was read of the host at one time.
type kernel struct {
	objects objects
	facts   hostFacts
	// index of each link of ours.
	index map[string]int
	// owners of taps: user and group.
	taps map[string]TapOptions
}

// readKernel reads what the kernel has of an owner, and what else a plan needs.
// changed are the sysctls of the host that the owner changed, with what they were.
func readKernel(n names, underlay netip.Addr, changed map[string]string) (*kernel, error) {
	k := &kernel{objects: newObjects(), index: map[string]int{}, taps: map[string]TapOptions{}}
	k.facts = hostFacts{links: map[string]string{}, ours: map[string]bool{}}
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("read links: %w", err)
	}
	names := map[int]string{}
	mtus := map[int]int{}
	for _, l := range links {
		names[l.Attrs().Index], mtus[l.Attrs().Index] = l.Attrs().Name, l.Attrs().MTU
	}
	ports, err := readPorts()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		k.addLink(n, l, names, ports)
	}
	if err := k.readAddresses(names, mtus, underlay); err != nil {
		return nil, err
	}
	if err := k.readRoutes(names, mtus); err != nil {
		return nil, err
	}
	if err := k.readNeighbours(names); err != nil {
		return nil, err
	}
	k.readForwarding(changed)
	return k, nil
}

// addLink takes a link as ours or as a fact of the host.
func (k *kernel) addLink(n names, l netlink.Link, names map[int]string, ports map[int]portFlags) {
	a := l.Attrs()
	m, ok := parseMark(a.Alias)
	if kind, half := n.halfMade(a.Name, a.HardwareAddr.String()); half && a.Alias == "" {
		m, ok = mark{owner: n.owner, kind: kind}, true
	}
	vxlan, isOverlay := l.(*netlink.Vxlan)
	if !ok || m.owner != n.owner {
		k.facts.links[a.Name] = a.Alias
		k.facts.bridges = k.facts.bridges || l.Type() == "bridge"
		if isOverlay {
			k.facts.overlays = append(k.facts.overlays, hostOverlay{link: a.Name, vni: vxlan.VxlanId, port: vxlan.Port})
		}
		return
	}
	got := link{kind: m.kind, alias: a.Alias, mtu: a.MTU, up: a.Flags&net.FlagUp != 0, port: ports[a.Index]}
	if m.kind != kindTap {
		got.mac = a.HardwareAddr.String()
	}
	if a.MasterIndex > 0 {
		got.bridge = names[a.MasterIndex]
	}
	if isOverlay {
		got.vni, got.udpPort = vxlan.VxlanId, vxlan.Port
		local, _ := netip.AddrFromSlice(vxlan.SrcAddr)
		got.local = local.Unmap()
	}
	if tap, isTap := l.(*netlink.Tuntap); isTap {
		k.taps[a.Name] = TapOptions{UID: int(tap.Owner), GID: int(tap.Group)}
	}
	k.objects.links[a.Name] = got
	k.index[a.Name] = a.Index
	k.facts.ours[a.Name] = true
}

// readPorts gives how bridges treat their ports, by the index of the link.
func readPorts() (map[int]portFlags, error) {
	msgs, err := whole(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
		return req.Execute(unix.NETLINK_ROUTE, 0)
	})
	if err != nil {
		return nil, fmt.Errorf("read bridge ports: %w", err)
	}
	ports := map[int]portFlags{}
	for _, m := range msgs {
		info := nl.DeserializeIfInfomsg(m)
		attrs, err := nl.ParseRouteAttr(m[info.Len():])
		if err != nil {
			return nil, fmt.Errorf("read bridge ports: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type&^unix.NLA_F_NESTED != unix.IFLA_PROTINFO {
				continue
			}
			nested, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return nil, fmt.Errorf("read bridge ports: %w", err)
			}
			ports[int(info.Index)] = parsePort(nested)
		}
	}
	return ports, nil
}

func parsePort(attrs []syscall.NetlinkRouteAttr) portFlags {
	var f portFlags
	fields := f.fields()
	for _, a := range attrs {
		if field := fields[int(a.Attr.Type)]; field != nil && len(a.Value) > 0 {
			*field = a.Value[0] == 1
		}
	}
	return f
}

// fields gives the flags by their number in netlink.
func (f *portFlags) fields() map[int]*bool {
	return map[int]*bool{
		nl.IFLA_BRPORT_LEARNING: &f.learning, nl.IFLA_BRPORT_UNICAST_FLOOD: &f.flood, nl.IFLA_BRPORT_MODE: &f.hairpin,
		nl.IFLA_BRPORT_GUARD: &f.guard, nl.IFLA_BRPORT_ISOLATED: &f.isolated, nl.IFLA_BRPORT_NEIGH_SUPPRESS: &f.suppress,
	}
}

// dumpTriesMax of reading a list that changes while it is read.
const dumpTriesMax = 100

// whole reads a list of the kernel's until nothing changed meanwhile: what is read in
// the middle of a change may lack entries that were there all the time. On a host whose
// interfaces come and go that happens, with nobody at fault. It gives the last error
// after dumpTriesMax.
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range dumpTriesMax {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return nil, err
}

func (k *kernel) readAddresses(names map[int]string, mtus map[int]int, underlay netip.Addr) error {
	list, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("read addresses: %w", err)
	}
	up := map[string]bool{}
	for _, a := range list {
		ip, ok := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if ip = ip.Unmap(); !ok || ip.IsLinkLocalUnicast() {
			continue
		}
		name, prefix := names[a.LinkIndex], netip.PrefixFrom(ip, ones)
		if k.facts.ours[name] {
			k.objects.addresses[address{name, prefix}] = true
			continue
		}
		k.facts.routes = append(k.facts.routes, hostRoute{prefix: prefix, link: name, address: true})
		if ip == underlay.Unmap() {
			k.facts.underlayMTU = mtus[a.LinkIndex]
		}
		// Another daemon's networks are that daemon's to guard.
		if _, isBlixard := parseMark(k.facts.links[name]); name != "lo" && !isBlixard && !up[name] {
			up[name] = true
			k.facts.uplinks = append(k.facts.uplinks, uplink{link: name})
		}
	}
	return nil
}

func (k *kernel) readRoutes(names map[int]string, mtus map[int]int) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := whole(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return fmt.Errorf("read routes: %w", err)
		}
		for _, r := range list {
			if r.Dst == nil || r.Dst.IP.IsUnspecified() {
				if k.facts.uplinkMTU == 0 {
					k.facts.uplinkMTU = mtus[r.LinkIndex]
				}
				continue
			}
			ip, ok := netip.AddrFromSlice(r.Dst.IP)
			ones, _ := r.Dst.Mask.Size()
			name := names[r.LinkIndex]
			if ip = ip.Unmap(); !ok || k.facts.ours[name] || ip.IsLinkLocalUnicast() || ip.IsMulticast() {
				continue
			}
			k.facts.routes = append(k.facts.routes, hostRoute{prefix: netip.PrefixFrom(ip, ones), link: name})
		}
	}
	return nil
}

func (k *kernel) readNeighbours(names map[int]string) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, family) })
		if err != nil {
			return fmt.Errorf("read neighbours: %w", err)
		}
		for _, n := range list {
			ip, ok := netip.AddrFromSlice(n.IP)
			name := names[n.LinkIndex]
			if ok && k.objects.links[name].kind == kindBridge && n.State&netlink.NUD_PERMANENT != 0 {
				k.objects.neighbours[neighbour{name, ip.Unmap()}] = n.HardwareAddr.String()
			}
		}
	}
	list, err := whole(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return fmt.Errorf("read forwarding entries: %w", err)
	}
	for _, n := range list {
		name := names[n.LinkIndex]
		l := k.objects.links[name]
		entry := forward{link: name, mac: n.HardwareAddr.String()}
		switch dst, hasDst := netip.AddrFromSlice(n.IP); {
		case l.kind == kindOverlay && n.Flags&netlink.NTF_SELF != 0 && hasDst:
			entry.overlay = true
			k.objects.forwarding[entry] = dst.Unmap()
		case l.kind != "" && l.kind != kindBridge && n.Flags&netlink.NTF_SELF == 0 && n.State&netlink.NUD_NOARP != 0:
			k.objects.forwarding[entry] = netip.Addr{}
		}
	}
	return nil
}

// readForwarding finds whether the host forwards by its own settings: what the
// owner changed counts as it was before.
func (k *kernel) readForwarding(changed map[string]string) {
	was := func(path string) string {
		if before, ok := changed[path]; ok {
			return before
		}
		return readSysctl(path)
	}
	k.facts.forward4 = was("net/ipv4/ip_forward") == "1"
	k.facts.forward6 = was("net/ipv6/conf/all/forwarding") == "1"
	k.facts.forceForward6 = readSysctl("net/ipv6/conf/all/force_forwarding") != ""
	for i, u := range k.facts.uplinks {
		k.facts.uplinks[i].acceptRA = was("net/ipv6/conf/"+u.link+"/accept_ra") == "1"
	}
}

// readSysctl gives a value, or "" for one that is not there.
func readSysctl(path string) string {
	text, err := os.ReadFile(filepath.Join("/proc/sys", path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func writeSysctl(path, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys", path), []byte(value+"\n"), 0o644)
}

// HostSubnets gives what the host reaches by other ways than a default route and an
// owner's networks. It may be called concurrently with everything.
func HostSubnets(owner string) ([]netip.Prefix, error) {
	links, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("read links: %w", err)
	}
	ours := map[int]bool{}
	for _, l := range links {
		m, _ := parseMark(l.Attrs().Alias)
		ours[l.Attrs().Index] = m.owner == owner
	}
	var subnets []netip.Prefix
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, family) })
		if err != nil {
			return nil, fmt.Errorf("read routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst == nil || ours[r.LinkIndex] {
				continue
			}
			a, ok := netip.AddrFromSlice(r.Dst.IP)
			bits, _ := r.Dst.Mask.Size()
			if p := netip.PrefixFrom(a.Unmap(), bits); ok && bits > 0 && !a.IsLinkLocalUnicast() && !a.IsMulticast() {
				subnets = append(subnets, p)
			}
		}
	}
	return subnets, nil
}
