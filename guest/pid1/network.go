//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/wire"
)

const (
	// routeMetric is the first NIC's default route's, each further one has as much more. An image's own
	// DHCP, which uses none or 1024, goes before or behind them and clashes with none.
	routeMetric = 100
	// routerAdvertisements is where the kernel is told, for each NIC, whether to believe them.
	routerAdvertisements = "/proc/sys/net/ipv6/conf/"
	// ownLine ends the lines of /etc/hosts that are this program's to change.
	ownLine = " # blixard"
)

// networkOf is an interface's configuration, checked.
type networkOf struct {
	mac      [6]byte
	mtu      uint32
	prefixes []netip.Prefix
	gateways []netip.Addr
}

// parseInterface checks an interface's configuration; the error says what is wrong with it.
func parseInterface(i *wire.Interface) (networkOf, error) {
	n := networkOf{mtu: i.MTU}
	bytes := strings.Split(i.MAC, ":")
	for k, s := range bytes {
		v, err := strconv.ParseUint(s, 16, 8)
		if err != nil || len(s) != 2 || len(bytes) != len(n.mac) {
			return n, errors.New("no MAC address: " + i.MAC)
		}
		n.mac[k] = byte(v)
	}
	for _, s := range i.Addresses {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Zone() != "" || p.Addr().Is4In6() {
			return n, errors.New("no address with a prefix length: " + s)
		}
		n.prefixes = append(n.prefixes, p)
	}
	for k, s := range []string{i.GatewayIPv4, i.GatewayIPv6} {
		if s == "" {
			continue
		}
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" || a.Is4() != (k == 0) || a.Is4In6() {
			return n, errors.New("no address of a gateway: " + s)
		}
		n.gateways = append(n.gateways, a)
	}
	return n, nil
}

// setupNetwork sets the interfaces up, in their order.
func setupNetwork(interfaces []wire.Interface) error {
	if len(interfaces) == 0 {
		return nil
	}
	nl, err := openNetlink()
	if err != nil {
		return err
	}
	defer nl.close()
	for i := range interfaces {
		n, err := parseInterface(&interfaces[i])
		if err == nil {
			err = nl.setup(n, routeMetric*uint32(i+1))
		}
		if err != nil {
			return fmt.Errorf("interface %s: %w", interfaces[i].MAC, err)
		}
	}
	return nil
}

// setup sets one NIC up, once its driver has found it.
func (n *netlink) setup(c networkOf, metric uint32) error {
	var found nic
	var err error
	if !poll(deviceLimit, func() bool {
		found, err = n.nicByMAC(c.mac)
		return found.index != 0 || err != nil
	}) {
		return fmt.Errorf("no such NIC appeared within %s", deviceLimit)
	}
	if err != nil {
		return err
	}
	if slices.ContainsFunc(c.prefixes, func(p netip.Prefix) bool { return p.Addr().Is6() }) {
		// What the configuration says is all: whoever advertises a router on this network changes nothing. A
		// kernel without the setting takes no advertisements.
		_ = writeSmall(routerAdvertisements+found.name+"/accept_ra", "0")
	}
	if err := n.linkUp(found.index, c.mtu); err != nil {
		return fmt.Errorf("bring it up with an MTU of %d: %w", c.mtu, err)
	}
	for _, p := range c.prefixes {
		if err := n.addAddress(found.index, p); err != nil {
			return fmt.Errorf("add the address %s: %w", p, err)
		}
	}
	for _, a := range c.gateways {
		if err := n.addDefaultRoute(found.index, a, metric); err != nil {
			return fmt.Errorf("add the route by %s: %w", a, err)
		}
	}
	return nil
}

// resolvConf is the text of /etc/resolv.conf, empty if the configuration has nothing for it.
func resolvConf(cfg *wire.BootConfig) string {
	text := ""
	for _, s := range cfg.DNS {
		text += "nameserver " + s + "\n"
	}
	if len(cfg.Search) > 0 {
		text += "search " + strings.Join(cfg.Search, " ") + "\n"
	}
	return text
}

// hostsFile is the new text of /etc/hosts: what is there, with lines of this program's own for the machine's
// name and, if nothing else has it, for localhost.
func hostsFile(old string, cfg *wire.BootConfig) string {
	var text strings.Builder
	local := false
	for line := range strings.Lines(old) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasSuffix(line, ownLine) {
			continue
		}
		names, _, _ := strings.Cut(line, "#")
		for i, name := range strings.Fields(names) {
			local = local || i > 0 && name == "localhost"
		}
		text.WriteString(line + "\n")
	}
	if !local {
		text.WriteString("127.0.0.1 localhost" + ownLine + "\n::1 localhost ip6-localhost ip6-loopback" + ownLine + "\n")
	}
	if cfg.Hostname == "" {
		return text.String()
	}
	addresses := firstAddresses(cfg.Interfaces)
	if len(addresses) == 0 {
		addresses = []string{"127.0.1.1"} // as Debian has it for machines without an address of their own
	}
	for _, a := range addresses {
		text.WriteString(a + " " + cfg.Hostname + ownLine + "\n")
	}
	return text.String()
}

// firstAddresses gives the first IPv4 and the first IPv6 address of all interfaces, without their lengths.
func firstAddresses(interfaces []wire.Interface) []string {
	var v4, v6 string
	for i := range interfaces {
		for _, s := range interfaces[i].Addresses {
			a, _, _ := strings.Cut(s, "/")
			if strings.Contains(a, ":") {
				v6 = first(v6, a)
			} else {
				v4 = first(v4, a)
			}
		}
	}
	var all []string
	for _, a := range []string{v4, v6} {
		if a != "" {
			all = append(all, a)
		}
	}
	return all
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// writeNames writes the files below root that tell a machine's programs its name and its name servers. What
// has the right content already is left alone: on a fresh disk each write copies a file up from the image.
func writeNames(root string, cfg *wire.BootConfig) error {
	if text := resolvConf(cfg); text != "" {
		if err := ensureFile(root+"/etc/resolv.conf", text); err != nil {
			return err
		}
	}
	if cfg.Hostname != "" {
		if err := ensureFile(root+"/etc/hostname", cfg.Hostname+"\n"); err != nil {
			return err
		}
	}
	if cfg.Hostname == "" && len(cfg.Interfaces) == 0 {
		return nil
	}
	old := readSmall(root + "/etc/hosts")
	if len(old) >= smallFile {
		return nil // a list of its own making, too long to be mended
	}
	return ensureFile(root+"/etc/hosts", hostsFile(old, cfg))
}

// ensureFile makes a regular file of small text at path unless it is there; a symbolic link is replaced.
func ensureFile(path, text string) error {
	var st unix.Stat_t
	if unix.Lstat(path, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && readSmall(path) == text {
		return nil
	}
	return writeFile(&wire.File{Path: path, Mode: wire.FileMode, Content: []byte(text)})
}
