package vmnet

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// TestPlan walks the scenarios of testdata/plan: what is desired on what host, and
// every object that the kernel shall have for it. If one fails, run the test with
// -rewrite and read the difference.
func TestPlan(t *testing.T) {
	datadriven.Walk(t, "testdata/plan", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s := scenario{host: hostFacts{links: map[string]string{}, ours: map[string]bool{}, uplinkMTU: 1500, underlayMTU: 1500, forceForward6: true}}
			for line := range strings.SplitSeq(d.Input, "\n") {
				if err := s.read(strings.Fields(line)); err != nil {
					d.Fatalf(t, "%q: %v", line, err)
				}
			}
			p := planner{names: names{prefix: "blx", owner: "node-1"}, vxlanPort: vxlanPortDefault}
			out := p.plan(s.want, s.host)
			switch d.Cmd {
			case "objects":
				return out.objects.text() + problemsText(out.problems)
			case "rules":
				return out.rules.String() + problemsText(out.problems)
			case "chain":
				var b strings.Builder
				for _, name := range d.CmdArgs {
					b.WriteString(out.rules.chain(name.Key))
				}
				return b.String() + problemsText(out.problems)
			case "problems":
				return problemsText(out.problems)
			}
			d.Fatalf(t, "unknown command %s", d.Cmd)
			return ""
		})
	})
}

// scenario is what the lines of a test say.
type scenario struct {
	want Desired
	host hostFacts
	vms  int
}

func (s *scenario) read(words []string) error {
	if len(words) == 0 {
		return nil
	}
	args := map[string]string{}
	var rest []string
	for _, w := range words[1:] {
		if key, value, ok := strings.Cut(w, "="); ok {
			args[key] = value
		} else {
			rest = append(rest, w)
		}
	}
	var network *Network
	if n := len(s.want.Networks); n > 0 {
		network = &s.want.Networks[n-1]
	}
	switch words[0] {
	case "underlay":
		s.want.Underlay = netip.MustParseAddr(rest[0])
	case "host":
		return s.readHost(args, rest)
	case "network":
		s.want.Networks = append(s.want.Networks, Network{Spec: readNetwork(args, rest)})
	case "local", "remote":
		s.vms++
		e := Endpoint{AllocationID: "alloc-" + rest[0], VMName: rest[0], MAC: fmt.Sprintf("52:54:00:00:00:%02x", s.vms)}
		for _, a := range rest[1:] {
			if ip := netip.MustParseAddr(a); ip.Is4() {
				e.IPv4 = ip
			} else {
				e.IPv6 = ip
			}
		}
		if words[0] == "local" {
			network.Local = append(network.Local, e)
			return nil
		}
		e.Node = netip.MustParseAddr(args["node"])
		network.Remote = append(network.Remote, e)
	case "egress", "ingress":
		r := &blixardv1.NetworkRule{Action: rest[0], Cidr: args["cidr"], Protocol: blixardv1.Protocol_Enum(blixardv1.Protocol_Enum_value[args["protocol"]])}
		first, last, _ := strings.Cut(args["ports"], "-")
		r.PortFirst, r.PortLast = number(first), number(last)
		if words[0] == "egress" {
			network.Spec.Rules.Egress = append(network.Spec.Rules.Egress, r)
		} else {
			network.Spec.Rules.Ingress = append(network.Spec.Rules.Ingress, r)
		}
	case "port":
		p := Port{HostPort: uint16(number(rest[0])), GuestPort: uint16(number(args["guest"])), Protocol: blixardv1.Protocol_Enum(blixardv1.Protocol_Enum_value[args["protocol"]])}
		for key, to := range map[string]*netip.Addr{"ipv4": &p.IPv4, "ipv6": &p.IPv6, "node": &p.Node} {
			if args[key] != "" {
				*to = netip.MustParseAddr(args[key])
			}
		}
		s.want.Ports = append(s.want.Ports, p)
	default:
		return fmt.Errorf("unknown word %s", words[0])
	}
	return nil
}

func number(s string) uint32 {
	n, _ := strconv.ParseUint(s, 10, 32)
	return uint32(n)
}

func readNetwork(args map[string]string, rest []string) *blixardv1.Network {
	n := &blixardv1.Network{
		Id: "net-" + rest[0], Name: rest[0], Type: blixardv1.NetworkType_nat, Ipv4Subnet: args["ipv4"], Ipv6Subnet: args["ipv6"],
		Vni: number(args["vni"]), Mtu: number(args["mtu"]), Rules: &blixardv1.NetworkRules{RateMbit: number(args["rate"])},
	}
	for _, w := range rest[1:] {
		switch w {
		case "isolated":
			n.Rules.Isolated = true
		case "internal":
			n.Rules.Internal = true
		case "user":
			n.Type = blixardv1.NetworkType_user
		}
	}
	return n
}

// readHost reads a fact.
func (s *scenario) readHost(args map[string]string, rest []string) error {
	switch rest[0] {
	case "uplink":
		s.host.uplinks = append(s.host.uplinks, uplink{link: rest[1], acceptRA: args["accept_ra"] == "1"})
	case "bridge":
		s.host.bridges = true
	case "forwards":
		s.host.forward4, s.host.forward6 = true, true
	case "linux-6.1":
		s.host.forceForward6 = false
	case "mtu":
		s.host.underlayMTU = int(number(rest[1]))
	case "route", "address":
		s.host.routes = append(s.host.routes, hostRoute{prefix: netip.MustParsePrefix(rest[1]), link: args["dev"], address: rest[0] == "address"})
	case "link":
		s.host.links[rest[1]] = strings.ReplaceAll(args["alias"], "_", " ")
	case "overlay":
		s.host.overlays = append(s.host.overlays, hostOverlay{link: rest[1], vni: int(number(args["vni"])), port: int(number(args["port"]))})
	default:
		return fmt.Errorf("unknown fact %s", rest[0])
	}
	return nil
}

func problemsText(problems map[string]error) string {
	var b strings.Builder
	for name := range sortedKeys(problems) {
		p := problem.From(problems[name])
		fmt.Fprintf(&b, "problem of %s: %s: %s\n  hint: %s\n", name, p.Code, p.Message, p.Hint)
	}
	return b.String()
}

// text gives the objects, a line each.
func (o objects) text() string {
	var b strings.Builder
	for name := range sortedKeys(o.links) {
		l := o.links[name]
		fmt.Fprintf(&b, "link %s %s mtu=%d", name, l.kind, l.mtu)
		if l.mac != "" {
			fmt.Fprintf(&b, " mac=%s", l.mac)
		}
		if l.bridge != "" {
			fmt.Fprintf(&b, " of %s %+v", l.bridge, l.port)
		}
		if l.kind == kindOverlay {
			fmt.Fprintf(&b, " vni=%d port=%d local=%s", l.vni, l.udpPort, l.local)
		}
		fmt.Fprintf(&b, " %q\n", l.alias)
	}
	for a := range sortedKeys(o.addresses) {
		fmt.Fprintf(&b, "address %s %s\n", a.link, a.prefix)
	}
	for n := range sortedKeys(o.neighbours) {
		fmt.Fprintf(&b, "neighbour %s %s %s\n", n.link, n.ip, o.neighbours[n])
	}
	for f := range sortedKeys(o.forwarding) {
		fmt.Fprintf(&b, "forward %s %s", f.link, f.mac)
		if f.overlay {
			fmt.Fprintf(&b, " to %s", o.forwarding[f])
		}
		b.WriteByte('\n')
	}
	for _, path := range sysctlOrder(o.sysctls) {
		fmt.Fprintf(&b, "sysctl %s=%s\n", path, o.sysctls[path])
	}
	return b.String()
}

// chain gives one chain of any table.
func (ts tables) chain(name string) string {
	var b strings.Builder
	for _, t := range ts {
		for _, c := range t.chains {
			if strings.HasPrefix(c.name, name) {
				fmt.Fprintf(&b, "%s %s\n", t.family, c.name)
				for _, r := range c.rules {
					fmt.Fprintf(&b, "  %s\n", r)
				}
			}
		}
	}
	return b.String()
}
