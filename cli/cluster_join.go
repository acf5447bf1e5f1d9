package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// memberPoll between looks at a member that is to change.
	memberPoll = 100 * time.Millisecond
	// initNodes is how many nodes `cluster init` prints a token for.
	initNodes = 3
	// tokenTextMax bounds what is read of a token from standard input.
	tokenTextMax = 1024
)

// untilRaftRole waits until a member's replica has that role.
func (a *app) untilRaftRole(ctx context.Context, c *client.Client, nodeID string, roles ...string) error {
	ctx, cancel := a.waiting(ctx)
	defer cancel()
	for {
		st, err := c.Cluster().GetCluster(ctx, &blixardv1.GetClusterRequest{})
		if err != nil {
			return err
		}
		for _, m := range st.GetMembers() {
			for _, role := range roles {
				if m.GetMember().GetNodeId() == nodeID && m.GetRaftRole() == role && st.GetLeaderNodeId() != "" {
					return nil
				}
			}
		}
		select {
		case <-time.After(memberPoll):
		case <-ctx.Done():
			return problem.New(problem.Unavailable, "member.slow", "the member has not got there in time").
				WithHint("it goes on; see `blixard cluster status`").WithCause(ctx.Err())
		}
	}
}

// withLocal is withClient for the node on this host of that address; an address
// that no link names is the default node's.
func (a *app) withLocal(ctx context.Context, address string, f func(context.Context, *client.Client) error) error {
	if a.addr == "" && address != "" {
		c, err := client.Dial(ctx, client.Config{Addr: address, Timeout: time.Duration(a.timeout)})
		if err == nil {
			a.addr = c.Addr()
			_ = c.Close()
		} else if !problem.HasCode(err, "credentials.missing") {
			return err
		}
	}
	return a.withClient(ctx, f)
}

func (a *app) clusterInitCommand() *cobra.Command {
	nodes := uint32(initNodes)
	cmd := &cobra.Command{
		Use: "init", Short: "Print the line by which other nodes join this one", Args: exactly(),
		Long: "Every node is a cluster of its own from its first start, so there is nothing to be made. " +
			"This makes a token for the further nodes and prints the line to run on each of them.",
		Example: "  blixard cluster init\n  blixard cluster init --nodes 5",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if nodes < 2 {
				return usageError("--nodes %d: a cluster of one needs no token", nodes).WithHint("leave --nodes out for 3")
			}
			return a.createToken(cmd.Context(), &blixardv1.CreateTokenRequest{Uses: nodes - 1})
		},
	}
	cmd.Flags().Uint32Var(&nodes, "nodes", initNodes, "nodes that the cluster shall have in all")
	return cmd
}

func (a *app) createToken(ctx context.Context, req *blixardv1.CreateTokenRequest) error {
	return a.withClient(ctx, func(ctx context.Context, c *client.Client) error {
		resp, err := c.Cluster().CreateToken(ctx, req)
		if err != nil {
			return err
		}
		return a.print(resp, func() error {
			t := resp.GetToken()
			_, err := fmt.Fprintf(a.stdout, "Run this on each new node (%d at most, until %s):\n\n  blixard cluster join --peer %s --token %s\n",
				t.GetUses(), t.GetExpiresAt().AsTime().Local().Format("15:04 on 2 January"), resp.GetAddress(), resp.GetText())
			return err
		})
	})
}

func (a *app) clusterTokenCommand() *cobra.Command {
	return noun("token", "Let nodes join", []string{"tokens"}, a.tokenCreateCommand(), a.tokenListCommand(), a.tokenRevokeCommand())
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var ttl durationFlag
	var uses uint32
	role := "standby"
	cmd := &cobra.Command{
		Use: "create", Short: "Make a token by which nodes join", Args: exactly(),
		Long: "Make a token and print the line to run on the new node. The token is shown once and kept nowhere. " +
			"A stand-by becomes a voter as long as the cluster has fewer than it wants.",
		Example: "  blixard cluster token create\n  blixard cluster token create --uses 2 --ttl 10m\n  blixard cluster token create --role worker",
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &blixardv1.CreateTokenRequest{Uses: uses, Role: blixardv1.MemberRole_Enum(blixardv1.MemberRole_Enum_value[role])}
			if req.GetRole() == blixardv1.MemberRole_unspecified {
				return usageError("--role %q is none", role).WithHint("roles are voter, standby, worker and witness")
			}
			if ttl != 0 {
				req.Ttl = durationpb.New(time.Duration(ttl))
			}
			return a.createToken(cmd.Context(), req)
		},
	}
	cmd.Flags().Var(&ttl, "ttl", "how long it can be used, 1s to 30d (default: 1h)")
	cmd.Flags().Uint32Var(&uses, "uses", 1, "how many nodes may join with it")
	cmd.Flags().StringVar(&role, "role", role, "role of who joins: voter, standby, worker or witness")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"voter", "standby", "worker", "witness"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) tokenListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the tokens that can be used", Args: exactly(), Example: "  blixard cluster token list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Cluster().ListTokens(ctx, &blixardv1.ListTokensRequest{})
				if err != nil {
					return err
				}
				return a.print(resp, func() error {
					t := &table{header: []string{"ID", "ROLE", "USES LEFT", "UNTIL", "BY"}}
					for _, one := range resp.GetTokens() {
						t.add(one.GetId(), one.GetRole().String(), fmt.Sprint(one.GetUses()), one.GetExpiresAt().AsTime().Local().Format(time.DateTime), one.GetCreator())
					}
					return a.writeTable(t)
				})
			})
		},
	}
}

func (a *app) tokenRevokeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Aliases: []string{"rm"}, Short: "Make a token worthless", Args: exactly("ID"), Example: "  blixard cluster token revoke k3j2h4g5",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				_, err := c.Cluster().RevokeToken(ctx, &blixardv1.RevokeTokenRequest{Id: args[0]})
				return err
			})
		},
	}
}

func (a *app) clusterJoinCommand() *cobra.Command {
	req := &blixardv1.JoinRequest{}
	cmd := &cobra.Command{
		Use: "join --peer HOST:PORT --token TOKEN", Short: "Make the node on this host a member", Args: exactly(),
		Long: "Make the node on this host, which must have no VMs of its own, a member of another node's cluster. " +
			"`blixard cluster token create` on that cluster prints the whole line.",
		Example: "  blixard cluster join --peer 10.0.0.1:7700 --token blixard1-...\n  blixard cluster join --peer 10.0.0.1:7700 --local-addr 10.0.0.2:7700 --token - < token",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if req.Peer == "" || req.Token == "" {
				return usageError("--peer and --token are needed").WithHint("`blixard cluster token create` on a member prints the whole line")
			}
			if req.Token == "-" {
				b, err := io.ReadAll(io.LimitReader(a.stdin, tokenTextMax))
				if err != nil {
					return err
				}
				req.Token = strings.TrimSpace(string(b))
			}
			return a.withLocal(cmd.Context(), req.LocalAddress, func(ctx context.Context, c *client.Client) error { return a.join(ctx, c, req) })
		},
	}
	cmd.Flags().StringVar(&req.Peer, "peer", "", "address of any member of the cluster: HOST:PORT")
	cmd.Flags().StringVar(&req.LocalAddress, "local-addr", "", "address by which the members reach this node (default: the configured one)")
	cmd.Flags().StringVar(&req.Token, "token", "", "the token, or - to read it from standard input")
	return cmd
}

func (a *app) join(ctx context.Context, c *client.Client, req *blixardv1.JoinRequest) error {
	ctx, cancel := a.waiting(ctx)
	defer cancel()
	p := a.progress("asking " + req.GetPeer() + " for a membership")
	defer p.stop()
	resp, err := c.Cluster().Join(ctx, req)
	if err != nil {
		return err
	}
	p.set("waiting for the cluster's state")
	if err := a.untilRaftRole(ctx, c, resp.GetMember().GetNodeId(), "voter", "learner"); err != nil {
		return err
	}
	p.stop()
	return a.printLine(resp, func() error {
		_, err := fmt.Fprintf(a.stdout, "%s is a member of %s as %s\n", resp.GetMember().GetName(), resp.GetClusterId(), resp.GetMember().GetRole())
		return err
	})
}

func (a *app) clusterLeaveCommand() *cobra.Command {
	local := ""
	cmd := &cobra.Command{
		Use: "leave", Short: "Take the node on this host out of its cluster", Args: exactly(),
		Long: "Take the node on this host out of its cluster: its VMs move to other nodes first, a leader hands over the lead, " +
			"and then the node is a fresh one, a cluster of its own.",
		Example: "  blixard cluster leave\n  blixard cluster leave --local-addr 10.0.0.3:7700",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withLocal(cmd.Context(), local, func(ctx context.Context, c *client.Client) error {
				ctx, cancel := a.waiting(ctx)
				defer cancel()
				p := a.progress("waiting until the node is empty and out")
				defer p.stop()
				if _, err := c.Cluster().Leave(ctx, &blixardv1.LeaveRequest{}); err != nil {
					return err
				}
				p.stop()
				_, err := fmt.Fprintln(a.stdout, "the node left its cluster")
				return err
			})
		},
	}
	cmd.Flags().StringVar(&local, "local-addr", "", "address of the node on this host (default: the one of the socket)")
	return cmd
}

func (a *app) clusterCredentialsCommand() *cobra.Command {
	role, file := string(auth.RoleOperator), ""
	cmd := &cobra.Command{
		Use: "credentials NAME", Short: "Make credentials for a person or program elsewhere", Args: exactly("NAME"),
		Long: "Make a key and a certificate of the cluster for somebody who has no socket of a node, and write both to one file. " +
			"An operator may do everything, a viewer may look. They end after 30 days.",
		Example: "  blixard cluster credentials alice --file alice.pem\n  BLIXARD_CREDENTIALS=alice.pem blixard vm list --addr 10.0.0.1:7700",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.makeCredentials(ctx, c, args[0], role, file)
			})
		},
	}
	cmd.Flags().StringVar(&role, "role", role, "operator or viewer")
	cmd.Flags().StringVar(&file, "file", "", "where to write them (default: NAME.pem)")
	return cmd
}

func (a *app) makeCredentials(ctx context.Context, c *client.Client, name, role, file string) error {
	keys, err := auth.NewKeypair()
	if err != nil {
		return err
	}
	csr, err := keys.SigningRequest()
	if err != nil {
		return err
	}
	resp, err := c.Enroll().IssueCertificate(ctx, &blixardv1.IssueCertificateRequest{SigningRequest: csr, Role: role, Name: name})
	if err != nil {
		return err
	}
	if keys, err = keys.Certify(resp.GetCertificate()); err != nil {
		return err
	}
	if file == "" {
		file = name + ".pem"
	}
	if err := auth.SaveCredentials(file, keys, resp.GetCaCertificates()); err != nil {
		return err
	}
	address := "HOST:PORT"
	if len(resp.GetMembers()) > 0 {
		address = resp.GetMembers()[0].GetAddress()
	}
	_, err = fmt.Fprintf(a.stdout, "%s %s until %s: blixard --credentials %s --addr %s vm list\n", role, name, keys.NotAfter().Local().Format(time.DateTime), file, address)
	return err
}
