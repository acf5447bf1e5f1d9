package vmnet

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
)

// Capable reports why this process can't make networks of type nat here; nil when
// it can.
func Capable(ctx context.Context) error {
	fail := func(code, what string, err error) *problem.Error {
		return problem.New(problem.Unavailable, code, "no networks of type nat: %s", what).WithCause(err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fail("network.capability", "the process's capabilities can't be read", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return problem.New(problem.Unavailable, "network.capability", "no networks of type nat: the process lacks CAP_NET_ADMIN").
			WithHint("run the daemon as root or with AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE")
	}
	if err := probeTun(); err != nil {
		return fail("network.tun", "no taps", err).WithHint("load the kernel module tun and give the daemon %s", tunDevice)
	}
	if _, err := exec.LookPath("nft"); err != nil {
		return fail("network.nft", "the program nft is missing", err).WithHint("install it: apt install nftables")
	}
	// A transaction that is checked and not done: it needs the tables' families and
	// each kind of match.
	probe := `add table bridge blixard-probe
add set bridge blixard-probe a { type ifname . ether_addr . ipv6_addr ; }
add chain bridge blixard-probe c { type filter hook prerouting priority -300 ; }
add rule bridge blixard-probe c iifname . ether saddr . ip6 saddr @a limit rate over 1000000 bytes/second drop
add table inet blixard-probe
add map inet blixard-probe m { type inet_proto . inet_service : ipv4_addr . inet_service ; }
add chain inet blixard-probe n { type nat hook prerouting priority -100 ; }
add rule inet blixard-probe n fib daddr type local dnat ip to meta l4proto . th dport map @m
add chain inet blixard-probe s { type nat hook postrouting priority 100 ; }
add rule inet blixard-probe s ct status dnat masquerade
`
	if _, err := nft(ctx, probe, "-c", "-f", "-"); err != nil {
		return fail("network.nft", "nftables does not work", err).WithHint("the kernel needs nf_tables with NAT, connection tracking and the bridge family")
	}
	return nil
}

// baseChain is a chain of nftables with a hook, as nft writes it.
type baseChain struct {
	Family string `json:"family"`
	Table  string `json:"table"`
	Name   string `json:"name"`
	Hook   string `json:"hook"`
	Policy string `json:"policy"`
}

// strangersLocked finds what others have set up that stands in the way. It can't
// be mended from here: an accept in one table does not overrule a drop in another.
func (f *Fabric) strangersLocked(ctx context.Context) ([]Drift, error) {
	if len(f.plan.networks) == 0 {
		return nil, nil
	}
	text, err := nft(ctx, "", "-j", "list", "chains")
	if err != nil {
		return nil, problem.New(problem.Internal, "network.rules_unreadable", "read the host's rules").WithCause(err)
	}
	var all struct {
		Nftables []struct {
			Chain *baseChain `json:"chain"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		return nil, problem.New(problem.Internal, "network.rules_unreadable", "read the host's rules").WithCause(err)
	}
	var drifts []Drift
	for _, item := range all.Nftables {
		c := item.Chain
		if c == nil || isOurTable(c.Table) || c.Policy != "drop" || (c.Family != "ip" && c.Family != "ip6" && c.Family != "inet") {
			continue
		}
		if c.Hook != "forward" && c.Hook != "input" {
			continue
		}
		what := "what goes in and out of networks"
		if c.Hook == "input" {
			what = "DHCP and DNS of guests, and the overlay"
		}
		drifts = append(drifts, Drift{What: fmt.Sprintf("the host's firewall may drop %s: chain %s %s %s drops by default; let it accept the interfaces %s", what, c.Family, c.Table, c.Name, strings.Join(f.linkPatterns(), " and "))})
	}
	return drifts, nil
}

// linkPatterns are how a firewall names our links.
func (f *Fabric) linkPatterns() []string { return []string{f.config.Prefix + "-*"} }
