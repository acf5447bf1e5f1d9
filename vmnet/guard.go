package vmnet

import (
	"fmt"
	"strconv"
	"strings"
)

// What was bridged, with br_netfilter, looks to the rules for IP like what was
// forwarded from a link to itself. bridgedMark is the bit of a packet's mark that tells
// both apart. It is set right before the frame is shown to those rules and is gone
// right after the first of them, or where it was not shown: no rule of another sees it.
// (The bridge that a frame is on, "meta ibrname", is not to be had in every kernel.)
const (
	bridgedMark = 0x1000
	// priorityBridged and priorityShown are around br_netfilter's place, which is -1
	// (NF_BR_PRI_BRNF - 1 in net/bridge/br_netfilter_hooks.c).
	priorityBridged = -2
	priorityShown   = 1
	// priorityGuard is before all that others have: connection tracking begins at -400.
	priorityGuard = -1000
)

// guarded are the links that are not ours, quoted, where this host did not forward
// before and does for guests; empty when it always did.
func guarded(host hostFacts) string {
	if host.forward4 && host.forward6 {
		return ""
	}
	var links []string
	for _, u := range host.uplinks {
		links = append(links, strconv.Quote(u.link))
	}
	return strings.Join(links, ", ")
}

// guard keeps a host that did not forward before from forwarding between links
// that are not ours.
func guard(host hostFacts) []chain {
	list := guarded(host)
	if list == "" {
		return nil
	}
	var rules []string
	if host.bridges {
		rules = append(rules, fmt.Sprintf("meta mark & %#x == %#x accept", bridgedMark, bridgedMark))
	}
	for _, f := range []struct {
		family    string
		forwarded bool
	}{{"ipv4", host.forward4}, {"ipv6", host.forward6}} {
		if !f.forwarded {
			rules = append(rules, fmt.Sprintf("meta nfproto %s ct status ! dnat iifname { %s } oifname { %s } drop", f.family, list, list))
		}
	}
	chains := []chain{{name: "guard", hook: hookAt("forward", priorityGuard), rules: rules}}
	if host.bridges {
		// In a place of its own: two daemons may guard one host.
		chains = append(chains, chain{name: "unmark", hook: hookAt("forward", priorityGuard+1), rules: []string{unmark()}})
	}
	return chains
}

// markBridged tells [guard] what others' bridges pass on.
func markBridged(host hostFacts) []chain {
	if guarded(host) == "" || !host.bridges {
		return nil
	}
	return []chain{
		{name: "bridged", hook: hookAt("forward", priorityBridged), rules: []string{
			fmt.Sprintf("iifname != @ports meta mark set meta mark | %#x", bridgedMark),
		}},
		{name: "shown", hook: hookAt("forward", priorityShown), rules: []string{unmark()}},
	}
}

func unmark() string {
	return fmt.Sprintf("meta mark & %#x == %#x meta mark set meta mark & %#x", bridgedMark, bridgedMark, uint32(^uint32(bridgedMark)))
}

func hookAt(hook string, priority int) string {
	return fmt.Sprintf("type filter hook %s priority %d; policy accept;", hook, priority)
}
