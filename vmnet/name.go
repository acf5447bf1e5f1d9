package vmnet

import (
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

const (
	// shortIDLetters of a hash name an interface: 40 bits, so that a host with a
	// thousand networks has two of the same name once in two million hosts.
	shortIDLetters = 8
	// prefixLettersMax leaves room for a letter of the kind, a dash and the short id
	// in the 15 letters that the kernel allows.
	prefixLettersMax = 5
)

// letters are base32 in lower case.
var letters = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// shortID is a short name for something, the same on every node.
func shortID(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return letters.EncodeToString(sum[:])[:shortIDLetters]
}

// names gives the names of what a Fabric makes.
type names struct{ prefix, owner string }

func (n names) bridge(networkID string) string  { return n.prefix + "-" + shortID(networkID) }
func (n names) overlay(networkID string) string { return n.prefix + "v-" + shortID(networkID) }
func (n names) table() string                   { return "blixard-" + shortID(n.owner) }

func (n names) tap(allocationID string, index int) string {
	return n.prefix + "t-" + shortID(allocationID, strconv.Itoa(index))
}

// The kinds of link that a Fabric makes.
const (
	kindBridge  = "bridge"
	kindOverlay = "overlay"
	kindTap     = "tap"
)

// mark is what the alias of an interface says.
type mark struct {
	owner, kind string
	// id of the network, or of the allocation with the index of the NIC.
	id    string
	index int
}

func (m mark) String() string {
	s := "blixard owner=" + m.owner + " " + m.kind + "=" + m.id
	if m.kind == kindTap {
		s += " nic=" + strconv.Itoa(m.index)
	}
	return s
}

// parseMark reads an alias; ok is false for what no blixard made.
func parseMark(alias string) (m mark, ok bool) {
	rest, ok := strings.CutPrefix(alias, "blixard owner=")
	if !ok {
		return mark{}, false
	}
	m.owner, rest, ok = strings.Cut(rest, " ")
	if !ok {
		return mark{}, false
	}
	for _, word := range strings.Fields(rest) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case kindBridge, kindOverlay, kindTap:
			m.kind, m.id = key, value
		case "nic":
			m.index, _ = strconv.Atoi(value)
		}
	}
	return m, m.kind != ""
}

// derivedMAC is an address of local administration for a purpose, the same on
// every node.
func derivedMAC(purpose, id string) string {
	sum := sha256.Sum256([]byte(purpose + "\x00" + id))
	sum[0] = sum[0]&^3 | 2 // local, not a group
	return net.HardwareAddr(sum[:6]).String()
}

// gatewayMAC is the gateway's in a network, on every node.
func gatewayMAC(networkID string) string { return derivedMAC("gateway", shortID(networkID)) }

// overlayMAC is that of the overlay's own interface, which sends nothing.
func overlayMAC(networkID string) string { return derivedMAC("overlay", shortID(networkID)) }

// halfMade tells a link that was made by us but not yet marked: the kernel can't do
// both at once. Name and MAC together are no accident.
func (n names) halfMade(name, mac string) (kind string, ok bool) {
	rest, ok := strings.CutPrefix(name, n.prefix)
	if !ok {
		return "", false
	}
	if short, ok := strings.CutPrefix(rest, "-"); ok && mac == derivedMAC("gateway", short) {
		return kindBridge, true
	}
	if short, ok := strings.CutPrefix(rest, "v-"); ok && mac == derivedMAC("overlay", short) {
		return kindOverlay, true
	}
	return "", false
}

// gatewayOf gives the first address of a subnet.
func gatewayOf(subnet netip.Prefix) netip.Addr { return subnet.Masked().Addr().Next() }

// linkLocal gives the link-local address that a NIC derives from its MAC.
func linkLocal(mac string) netip.Addr {
	hw, err := net.ParseMAC(mac)
	if err != nil || len(hw) != 6 {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: hw[0] ^ 2, hw[1], hw[2], 0xff, 0xfe, hw[3], hw[4], hw[5]})
}

// hexOf gives the digits of a number of nftables.
func hexOf(b []byte) string { return fmt.Sprintf("0x%x", b) }
