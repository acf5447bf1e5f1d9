package cli

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard/daemon"
	"github.com/blixard/blixard/daemon/config"
	"github.com/blixard/blixard/internal/units"
)

// entriesShown of a log by `debug wal show`.
const entriesShown = 20

func (a *app) debugCommand() *cobra.Command {
	return noun("debug", "Look at the data of a stopped node that is in trouble", nil,
		noun("wal", "Show or check the log of changes", nil,
			a.walShowCommand(), a.verifyCommand("log", func(c *daemon.LogContents) ([]daemon.LogFile, error) { return c.Segments, c.SegmentDamage })),
		noun("snapshot", "Show or check the snapshots of the state", nil,
			a.snapshotShowCommand(), a.verifyCommand("snapshots", func(c *daemon.LogContents) ([]daemon.LogFile, error) { return c.Snapshots, c.SnapshotDamage })))
}

// inspect reads the log in the directory that was named, or in the one that the
// node would use.
func inspect(args []string, from, to uint64, limit int) (*daemon.LogContents, error) {
	dir, err := dataDir(args)
	if err != nil {
		return nil, err
	}
	return daemon.InspectLog(dir, from, to, limit)
}

// dataDir is the directory that was named, or the one that the node would use.
func dataDir(args []string) (string, error) {
	if len(args) > 0 {
		return args[0], nil
	}
	src, err := config.System()
	if err != nil {
		return "", err
	}
	cfg, _, err := config.Load(src)
	if err != nil {
		return "", err
	}
	return cfg.DataDir, nil
}

func (a *app) walShowCommand() *cobra.Command {
	var from, to uint64
	var limit int
	cmd := &cobra.Command{
		Use: "show [DATA-DIR]", Short: "Show the segments of the log and its newest changes", Args: atMostOne("DATA-DIR"),
		Long: `Show the segments of the log of a stopped node, what it voted for, and its newest changes. Nothing is changed. Without
DATA-DIR it is the one that the node uses.`,
		Example: "  blixard debug wal show\n  blixard debug wal show /var/lib/blixard --from 1000 --to 1010\n  blixard debug wal show -o json",
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := inspect(args, from, to, max(limit, 0))
			if err != nil {
				return err
			}
			return a.print(c, func() error { return a.walTable(c) })
		},
	}
	f := cmd.Flags()
	f.Uint64Var(&from, "from", 0, "least index of the changes to show")
	f.Uint64Var(&to, "to", 0, "highest index of the changes to show (default: the newest)")
	f.IntVar(&limit, "limit", entriesShown, "how many changes to show at most, the newest of them")
	return cmd
}

func (a *app) walTable(c *daemon.LogContents) error {
	t := &table{header: []string{"SEGMENT", "ENTRIES", "FIRST", "LAST", "SIZE", "STATE"}}
	for _, s := range c.Segments {
		t.add(filepath.Base(s.File), fmt.Sprint(s.Entries), fmt.Sprint(s.First), fmt.Sprint(s.Last), units.Size(s.Bytes).Human(), s.State)
	}
	if _, err := fmt.Fprintf(a.stdout, "%s\ncluster %s, node %s, term %d, vote %d, committed %d\n\n",
		c.Dir, c.ClusterID, c.NodeID, c.Term, c.Vote, c.Commit); err != nil {
		return err
	}
	if err := a.writeTable(t); err != nil || len(c.Entries) == 0 {
		return err
	}
	t = &table{header: []string{"INDEX", "TERM", "KIND", "ACTOR", "BYTES"}, shrink: []int{3}}
	for _, e := range c.Entries {
		t.add(fmt.Sprint(e.Index), fmt.Sprint(e.Term), e.Kind, e.Actor, fmt.Sprint(e.Bytes))
	}
	if _, err := fmt.Fprintln(a.stdout); err != nil {
		return err
	}
	return a.writeTable(t)
}

func (a *app) snapshotShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show [DATA-DIR]", Short: "Show the snapshots of a stopped node", Args: atMostOne("DATA-DIR"),
		Long: `Show the snapshots of a stopped node: up to which change each goes, and which replicas it names. Nothing is changed.
Without DATA-DIR it is the one that the node uses.`,
		Example: "  blixard debug snapshot show\n  blixard debug snapshot show /var/lib/blixard -o json",
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := inspect(args, 0, 0, 0)
			if err != nil {
				return err
			}
			return a.print(c.Snapshots, func() error {
				t := &table{header: []string{"SNAPSHOT", "INDEX", "TERM", "VOTERS", "LEARNERS", "SIZE", "STATE"}}
				for _, s := range c.Snapshots {
					t.add(filepath.Base(s.File), fmt.Sprint(s.Last), fmt.Sprint(s.Term), numbers(s.Voters), numbers(s.Learners),
						units.Size(s.Bytes).Human(), s.State)
				}
				return a.writeTable(t)
			})
		},
	}
}

func numbers(ids []uint64) string {
	return strings.Trim(fmt.Sprint(ids), "[]")
}

func (a *app) verifyCommand(what string, part func(*daemon.LogContents) ([]daemon.LogFile, error)) *cobra.Command {
	group := map[string]string{"log": "wal", "snapshots": "snapshot"}[what]
	return &cobra.Command{
		Use: "verify [DATA-DIR]", Short: "Check every checksum of the " + what + " of a stopped node", Args: atMostOne("DATA-DIR"),
		Long: "Check every checksum of the " + what + ` of a stopped node and change nothing. What is damaged is told with file, offset
and the way back, and the exit code is not 0. Without DATA-DIR it is the one that the node uses.`,
		Example: "  blixard debug " + group + " verify\n  blixard debug " + group + " verify /var/lib/blixard",
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := inspect(args, 0, 0, 0)
			if err != nil {
				return err
			}
			files, damage := part(c)
			if damage != nil {
				return damage
			}
			return a.print(fields{{"result", "ok"}, {"dir", c.Dir}, {"files", fmt.Sprint(len(files))}}, func() error {
				_, err := fmt.Fprintf(a.stdout, "%s: %d files, every checksum holds\n", c.Dir, len(files))
				return err
			})
		},
	}
}
