package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/units"
)

func (a *app) clusterCommand() *cobra.Command {
	return noun("cluster", "Form a cluster of nodes, and see how it is", nil,
		a.clusterInitCommand(), a.clusterJoinCommand(), a.clusterLeaveCommand(), a.clusterStatusCommand(), a.clusterMembersCommand(),
		a.clusterTokenCommand(), a.clusterRoleCommand("promote", blixardv1.MemberRole_voter), a.clusterRoleCommand("demote", blixardv1.MemberRole_standby),
		a.clusterRemoveCommand(), a.clusterTransferCommand(), a.clusterCompactCommand(), a.clusterCredentialsCommand(),
		a.clusterCACommand(), a.clusterRecoverCommand(), a.clusterSettingsCommand(), a.clusterSetCommand())
}

func (a *app) clusterStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show members, leader and health", Args: exactly(),
		Long: "Show what the answering node knows of its cluster: members, roles, who leads, how far each is, and what is wrong. " +
			"It answers without a leader too.",
		Example: "  blixard cluster status\n  blixard cluster status --addr 10.0.0.1:7700 -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				st, err := c.Cluster().GetCluster(ctx, &blixardv1.GetClusterRequest{})
				if err != nil {
					return err
				}
				return a.print(st, func() error {
					if err := a.facts(clusterFacts(st)); err != nil {
						return err
					}
					if _, err := fmt.Fprintln(a.stdout); err != nil {
						return err
					}
					return a.memberTable(st)
				})
			})
		},
	}
}

func clusterFacts(st *blixardv1.GetClusterResponse) [][2]string {
	name := func(id string) string {
		for _, m := range st.GetMembers() {
			if m.GetMember().GetNodeId() == id {
				return m.GetMember().GetName()
			}
		}
		return id
	}
	leader, health := "none", "no: changes wait for a leader that a majority of the voters follows"
	if id := st.GetLeaderNodeId(); id != "" {
		leader = name(id)
	}
	if st.GetHealthy() {
		health = "yes"
	}
	rows := [][2]string{
		{"Cluster", st.GetClusterId()},
		{"Healthy", health},
		{"Leader", leader},
		{"Answers", name(st.GetNodeId())},
		{"Log", fmt.Sprintf("term %d, committed %d, applied %d, %s on disk", st.GetTerm(), st.GetCommitIndex(), st.GetAppliedIndex(), units.Size(st.GetLogBytes()).Human())},
		{"Snapshot", fmt.Sprintf("of index %d", st.GetSnapshotIndex())},
		{"Feature level", fmt.Sprint(st.GetFeatureLevel())},
	}
	for _, notice := range st.GetNotices() {
		rows = append(rows, [2]string{"Notice", notice})
	}
	return rows
}

func (a *app) memberTable(st *blixardv1.GetClusterResponse) error {
	t := &table{header: []string{"NAME", "ADDRESS", "ROLE", "RAFT", "STATE", "ANSWERS", "INDEX", "LAG", "VERSION"}, shrink: []int{8, 0}}
	for _, m := range st.GetMembers() {
		raft := m.GetRaftRole()
		if m.GetLeader() {
			raft = "leader"
		}
		answers, index, lag := "-", "-", "-"
		if st.GetHealthy() || m.GetMatchIndex() > 0 {
			answers = map[bool]string{true: "yes", false: "no"}[m.GetActive()]
			index, lag = fmt.Sprint(m.GetMatchIndex()), fmt.Sprint(m.GetLag())
		}
		t.add(m.GetMember().GetName(), m.GetMember().GetAddress(), m.GetMember().GetRole().String(), raft, m.GetNodeState(), answers, index, lag, m.GetMember().GetVersion())
	}
	return a.writeTable(t)
}

func (a *app) clusterMembersCommand() *cobra.Command {
	return &cobra.Command{
		Use: "members", Aliases: []string{"ls"}, Short: "List the members", Args: exactly(),
		Example: "  blixard cluster members\n  blixard cluster members -o json | jq -r '.members[].member.address'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				st, err := c.Cluster().GetCluster(ctx, &blixardv1.GetClusterRequest{})
				if err != nil {
					return err
				}
				raw, err := list("members", st.GetMembers())
				if err != nil {
					return err
				}
				return a.print(raw, func() error { return a.memberTable(st) })
			})
		},
	}
}

func (a *app) clusterRoleCommand(verb string, role blixardv1.MemberRole_Enum) *cobra.Command {
	short, long := "Give a member a vote", "Make a stand-by a voter. It gets its vote as soon as it has the whole log."
	if verb == "demote" {
		short, long = "Take a member's vote", "Make a voter a stand-by. A leader hands over the lead first."
	}
	return &cobra.Command{
		Use: verb + " NODE", Short: short, Long: long, Args: exactly("NODE"),
		Example: "  blixard cluster " + verb + " node-3",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Cluster().ChangeMember(ctx, &blixardv1.ChangeMemberRequest{Node: args[0], Role: role})
				if err != nil {
					return err
				}
				p := a.progress("waiting until " + args[0] + " is a " + role.String())
				defer p.stop()
				wanted := map[blixardv1.MemberRole_Enum]string{blixardv1.MemberRole_voter: "voter", blixardv1.MemberRole_standby: "learner"}[role]
				if err := a.untilRaftRole(ctx, c, resp.GetMember().GetNodeId(), wanted); err != nil {
					return err
				}
				p.stop()
				return a.printLine(resp.GetMember(), func() error {
					_, err := fmt.Fprintf(a.stdout, "%s is a %s\n", resp.GetMember().GetName(), role)
					return err
				})
			})
		},
	}
}

func (a *app) clusterRemoveCommand() *cobra.Command {
	force := false
	cmd := &cobra.Command{
		Use: "remove NODE", Aliases: []string{"rm"}, Short: "Take a member out for good", Args: exactly("NODE"),
		Long: "Take a member out for good: it loses its vote, and its certificate is worth nothing from then on. It is for nodes that won't come back; " +
			"one that runs leaves by `blixard cluster leave`, which empties it first.",
		Example: "  blixard cluster remove node-3\n  blixard cluster remove node-3 --force",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				ctx, cancel := a.waiting(ctx)
				defer cancel()
				p := a.progress("taking " + args[0] + " out of the cluster")
				defer p.stop()
				resp, err := c.Cluster().RemoveMember(ctx, &blixardv1.RemoveMemberRequest{Node: args[0], Force: force})
				if err != nil {
					return err
				}
				p.stop()
				return a.printLine(resp.GetMember(), func() error {
					_, err := fmt.Fprintf(a.stdout, "%s was removed\n", resp.GetMember().GetName())
					return err
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "give up the VMs that the node still has: they start elsewhere")
	return cmd
}

func (a *app) clusterTransferCommand() *cobra.Command {
	return &cobra.Command{
		Use: "transfer-leader [NODE]", Short: "Let another voter lead", Args: cobra.MaximumNArgs(1),
		Long:    "Hand the lead over to a voter, or to the one that has most of the log.",
		Example: "  blixard cluster transfer-leader\n  blixard cluster transfer-leader node-2",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Cluster().TransferLeader(ctx, &blixardv1.TransferLeaderRequest{Node: strings.Join(args, "")})
				if err != nil {
					return err
				}
				return a.printLine(resp, func() error {
					_, err := fmt.Fprintf(a.stdout, "%s leads\n", resp.GetLeaderNodeId())
					return err
				})
			})
		},
	}
}

func (a *app) clusterCompactCommand() *cobra.Command {
	return &cobra.Command{
		Use: "compact", Short: "Write a snapshot and drop the log before it", Args: exactly(),
		Long:    "Have the answering node write a snapshot of its state now, and drop what of its log is not needed any more. It does so by itself from time to time.",
		Example: "  blixard cluster compact\n  blixard cluster compact --addr 10.0.0.2:7700",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				ctx, cancel := a.waiting(ctx)
				defer cancel()
				resp, err := c.Cluster().Compact(ctx, &blixardv1.CompactRequest{})
				if err != nil {
					return err
				}
				return a.printLine(resp, func() error {
					_, err := fmt.Fprintf(a.stdout, "snapshot of index %d, %s on disk\n", resp.GetSnapshotIndex(), units.Size(resp.GetLogBytes()).Human())
					return err
				})
			})
		},
	}
}
