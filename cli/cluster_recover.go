package cli

import (
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard/daemon"
)

func (a *app) clusterRecoverCommand() *cobra.Command {
	var flags nodeFlags
	commit := false
	cmd := &cobra.Command{
		Use: "recover", Short: "Go on from one stopped node after the majority was lost", Args: exactly(),
		Long: `Make a new cluster of one of what this host's stopped node has, when a majority of the voters is lost for ever. It keeps
every VM and everything else of the log, has a new id and a new authority, and removes all other members: their VMs are
given up and start elsewhere, and whatever of them still runs is never let in again. Choose the node with the newest log.

It refuses while a majority could exist, and without --yes it only tells what it would do. Changes that were acknowledged
but never came to this node are lost. The old log is kept beside the new one, as raft.survived in the data directory.`,
		Example: "  blixard cluster recover\n  blixard cluster recover --data-dir /var/lib/blixard --yes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, cfg, _, err := flags.load(cmd)
			if err != nil {
				return err
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			p := a.progress("asking the other members")
			defer p.stop()
			plan, err := daemon.Recover(ctx, daemon.RecoverOptions{
				Config: cfg, Logger: slog.New(slog.DiscardHandler), Commit: commit,
				Progress: func(what string) { p.set("%s", what) },
			})
			if err != nil {
				return err
			}
			p.stop()
			return a.print(plan, func() error { return a.recoverText(plan) })
		},
	}
	flags.register(cmd)
	cmd.Flags().BoolVarP(&commit, "yes", "y", false, "do it")
	return cmd
}

func (a *app) recoverText(plan *daemon.RecoverPlan) error {
	t := &table{header: []string{"LOST", "ADDRESS", "ROLE", "ANSWERS"}}
	for _, m := range plan.Lost {
		t.add(m.Name, m.Address, m.Role, map[bool]string{true: "yes", false: "no"}[m.Answers])
	}
	if err := a.writeTable(t); err != nil {
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "\n%s has cluster %s up to change %d; %d VMs of the others are given up\n", plan.Node, plan.ClusterID, plan.Index, plan.VMs)
	if err != nil {
		return err
	}
	if plan.NewClusterID == "" {
		_, err = fmt.Fprintln(a.stdout, "Nothing was changed. Run it again with --yes.")
		return err
	}
	_, err = fmt.Fprintf(a.stdout, `It goes on as %s. Start it (blixard node start --detach), and let the others join it
with empty data directories (blixard cluster init).
`, plan.NewClusterID)
	return err
}
