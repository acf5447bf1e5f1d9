package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
)

func (a *app) networkCommand() *cobra.Command {
	return noun("network", "Make and check the networks of VMs", []string{"networks", "net"},
		a.networkCreateCommand(), a.networkListCommand(), a.networkShowCommand(), a.networkRulesCommand(), a.networkDeleteCommand(), a.networkCheckCommand())
}

// ruleFlags are the flags that make a network's rules.
type ruleFlags struct {
	ingress, egress    []string
	isolated, internal bool
	rate               uint32
}

func (r *ruleFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&r.ingress, "ingress", nil, "rule for what comes in, such as allow:192.0.2.0/24:tcp:22 or deny; may be repeated, the first that matches decides")
	f.StringArrayVar(&r.egress, "egress", nil, "rule for what goes out, such as deny:10.0.0.0/8; may be repeated, the first that matches decides")
	f.BoolVar(&r.isolated, "isolated", false, "VMs of the network do not reach each other")
	f.BoolVar(&r.internal, "internal", false, "nothing goes out of the network or comes in")
	f.Uint32Var(&r.rate, "rate", 0, "what each VM may send, in Mbit/s (default: no bound)")
}

func (r *ruleFlags) rules() (*blixardv1.NetworkRules, error) {
	out := &blixardv1.NetworkRules{Isolated: r.isolated, Internal: r.internal, RateMbit: r.rate}
	for _, one := range []struct {
		flag string
		from []string
		to   *[]*blixardv1.NetworkRule
	}{{"--ingress", r.ingress, &out.Ingress}, {"--egress", r.egress, &out.Egress}} {
		for _, text := range one.from {
			rule, err := parseRule(one.flag, text)
			if err != nil {
				return nil, err
			}
			*one.to = append(*one.to, rule)
		}
	}
	return out, nil
}

// parseRule reads ACTION[:CIDR][:PROTOCOL[:PORT[-PORT]]]. A CIDR of IPv6 stands in
// brackets.
func parseRule(flag, text string) (*blixardv1.NetworkRule, error) {
	bad := usageError("%s %q is no rule", flag, text).WithHint("write allow or deny, then a prefix, a protocol and ports as needed: allow:192.0.2.0/24:tcp:8000-8099, deny:[2001:db8::/32]")
	action, rest, _ := strings.Cut(text, ":")
	rule := &blixardv1.NetworkRule{Action: action}
	if strings.HasPrefix(rest, "[") {
		cidr, after, found := strings.Cut(rest[1:], "]")
		if !found || after != "" && after[0] != ':' {
			return nil, bad
		}
		rule.Cidr, rest = cidr, strings.TrimPrefix(after, ":")
	} else if cidr, after, _ := strings.Cut(rest, ":"); strings.Contains(cidr, "/") {
		rule.Cidr, rest = cidr, after
	}
	if rest == "" {
		return rule, nil
	}
	word, ports, hasPorts := strings.Cut(rest, ":")
	if word != "any" {
		if rule.Protocol = blixardv1.Protocol_Enum(blixardv1.Protocol_Enum_value[word]); rule.GetProtocol() == 0 {
			return nil, bad
		}
	}
	if hasPorts {
		first, last, ok := portRange(ports)
		if !ok {
			return nil, bad
		}
		rule.PortFirst, rule.PortLast = first, last
	}
	return rule, nil
}

// ruleText is what parseRule reads.
func ruleText(r *blixardv1.NetworkRule) string {
	s := r.GetAction()
	if r.GetCidr() != "" {
		cidr := r.GetCidr()
		if strings.Contains(cidr, ":") {
			cidr = "[" + cidr + "]"
		}
		s += ":" + cidr
	}
	if r.GetProtocol() != 0 {
		s += ":" + r.GetProtocol().String()
	} else if r.GetPortFirst() != 0 {
		s += ":any"
	}
	if r.GetPortFirst() != 0 {
		s += ":" + strconv.FormatUint(uint64(r.GetPortFirst()), 10)
		if r.GetPortLast() > r.GetPortFirst() {
			s += "-" + strconv.FormatUint(uint64(r.GetPortLast()), 10)
		}
	}
	return s
}

func (a *app) networkCreateCommand() *cobra.Command {
	req := &blixardv1.CreateNetworkRequest{}
	kind := "nat"
	var rules ruleFlags
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a network", Args: exactly("NAME"),
		Long: `Make a network. In one of type nat, VMs reach each other by address and name (VM.NETWORK.blixard) on whatever nodes they
are, and the outside by address translation. One of type user needs no rights on the nodes: each VM is alone in it.`,
		Example: `  blixard network create backend
  blixard network create office --subnet 10.90.0.0/24 --ingress allow:192.0.2.0/24:tcp:22
  blixard network create jail --internal --isolated`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name, req.IdempotencyKey = args[0], client.NewKey()
			if req.Type = blixardv1.NetworkType_Enum(blixardv1.NetworkType_Enum_value[kind]); req.GetType() == 0 {
				return badWord("--type", kind, "nat", "user")
			}
			var err error
			if req.Rules, err = rules.rules(); err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Networks().CreateNetwork(ctx, req)
				if err != nil {
					return err
				}
				n := resp.GetNetwork()
				return a.say(n, "%s", strings.TrimSpace(n.GetName()+" made "+n.GetIpv4Subnet()+" "+n.GetIpv6Subnet()))
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&kind, "type", kind, "nat or user")
	f.StringVar(&req.Ipv4Subnet, "subnet", "", "IPv4 subnet (default: a free one of 10.64.0.0/10)")
	f.StringVar(&req.Ipv6Subnet, "subnet6", "", "IPv6 subnet of 64 bits (default: a random one of fd00::/8)")
	f.BoolVar(&req.NoIpv6, "no-ipv6", false, "leave IPv6 out")
	f.Uint32Var(&req.Mtu, "mtu", 0, "MTU of the guests (default: what fits the nodes)")
	rules.register(cmd)
	complete(cmd, "type", "nat", "user")
	return cmd
}

func (a *app) networkListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the networks", Args: exactly(), Example: "  blixard network list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Networks().ListNetworks(ctx, &blixardv1.ListNetworksRequest{})
				if err != nil {
					return err
				}
				return a.print(resp, func() error {
					t := &table{header: []string{"NAME", "TYPE", "IPV4", "IPV6", "AGE"}}
					for _, n := range resp.GetNetworks() {
						t.add(n.GetName(), n.GetType().String(), n.GetIpv4Subnet(), n.GetIpv6Subnet(), since(n.GetCreatedAt()))
					}
					return a.writeTable(t)
				})
			})
		},
	}
}

func (a *app) networkShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Aliases: []string{"inspect"}, Short: "Show a network, its rules and its addresses", Args: exactly("NAME"), Example: "  blixard network show default",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Networks().GetNetwork(ctx, &blixardv1.GetNetworkRequest{Name: args[0]})
				if err != nil {
					return err
				}
				return a.print(resp, func() error { return a.showNetwork(resp) })
			})
		},
	}
}

func (a *app) showNetwork(resp *blixardv1.GetNetworkResponse) error {
	n := resp.GetNetwork()
	number := func(v uint32, unit string) string {
		if v == 0 {
			return ""
		}
		return fmt.Sprint(v) + unit
	}
	facts := [][2]string{
		{"name", n.GetName()},
		{"type", n.GetType().String()},
		{"ipv4", n.GetIpv4Subnet()},
		{"ipv6", n.GetIpv6Subnet()},
		{"mtu", number(n.GetMtu(), "")},
		{"rate", number(n.GetRules().GetRateMbit(), " Mbit/s for each VM")},
	}
	if n.GetRules().GetInternal() {
		facts = append(facts, [2]string{"internal", "nothing goes out or comes in"})
	}
	if n.GetRules().GetIsolated() {
		facts = append(facts, [2]string{"isolated", "its VMs do not reach each other"})
	}
	for _, r := range n.GetRules().GetIngress() {
		facts = append(facts, [2]string{"ingress", ruleText(r)})
	}
	for _, r := range n.GetRules().GetEgress() {
		facts = append(facts, [2]string{"egress", ruleText(r)})
	}
	if err := a.facts(facts); err != nil || len(resp.GetLeases()) == 0 {
		return err
	}
	if _, err := fmt.Fprintln(a.stdout); err != nil {
		return err
	}
	t := &table{header: []string{"VM", "IPV4", "IPV6", "MAC"}}
	for _, l := range resp.GetLeases() {
		t.add(l.GetVmName(), l.GetIpv4(), l.GetIpv6(), l.GetMac())
	}
	return a.writeTable(t)
}

func (a *app) networkRulesCommand() *cobra.Command {
	var flags ruleFlags
	cmd := &cobra.Command{
		Use: "rules NAME", Short: "Replace the rules of a network", Args: exactly("NAME"),
		Long:    "Replace all rules of a network by those of the flags; without flags the network has none. They take effect at once, on every node.",
		Example: "  blixard network rules backend --egress deny:10.0.0.0/8 --egress allow\n  blixard network rules backend",
		RunE: func(cmd *cobra.Command, args []string) error {
			rules, err := flags.rules()
			if err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Networks().UpdateNetwork(ctx, &blixardv1.UpdateNetworkRequest{Name: args[0], Rules: rules, IdempotencyKey: client.NewKey()})
				if err != nil {
					return err
				}
				return a.say(resp.GetNetwork(), "%s changed", resp.GetNetwork().GetName())
			})
		},
	}
	flags.register(cmd)
	return cmd
}

func (a *app) networkDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME", Aliases: []string{"rm"}, Short: "Delete a network that no VM is in", Args: exactly("NAME"), Example: "  blixard network delete backend",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Networks().DeleteNetwork(ctx, &blixardv1.DeleteNetworkRequest{Name: args[0], IdempotencyKey: client.NewKey()})
				if err != nil {
					return err
				}
				return a.say(resp.GetNetwork(), "%s deleted", resp.GetNetwork().GetName())
			})
		},
	}
}

func (a *app) networkCheckCommand() *cobra.Command {
	var mend bool
	cmd := &cobra.Command{
		Use: "check", Short: "Compare the networks of a node's kernel with what they should be", Args: exactly(),
		Long:    "Compare what the asked node's kernel has with what it should have, and list what differs; with --mend put it right. Ends with 1 when something differs and was not mended.",
		Example: "  blixard network check\n  blixard network check --mend",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Networks().CheckNetwork(ctx, &blixardv1.CheckNetworkRequest{Mend: mend})
				if err != nil {
					return err
				}
				err = a.print(resp, func() error {
					for _, d := range resp.GetDrifts() {
						if _, err := fmt.Fprintln(a.stdout, clean(d)); err != nil {
							return err
						}
					}
					word := "all is as it should be"
					if n := len(resp.GetDrifts()); n > 0 && resp.GetMended() {
						word = fmt.Sprintf("%d mended", n)
					} else if n > 0 {
						word = fmt.Sprintf("%d differ", n)
					}
					_, err := fmt.Fprintf(a.stdout, "node %s: %s\n", clean(resp.GetNode()), word)
					return err
				})
				if err == nil && len(resp.GetDrifts()) > 0 && !resp.GetMended() {
					return &exitError{code: 1}
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&mend, "mend", false, "put right what differs")
	return cmd
}
