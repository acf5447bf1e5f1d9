package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

func replicaCount(text string) (uint32, error) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil {
		return 0, usageError("%q is no number of VMs", text).WithHint("write a number from 0 to 1000")
	}
	return uint32(n), nil
}

func newestVersion(g *blixardv1.Group) *blixardv1.GroupVersion {
	return versionOf(g, g.GetStatus().GetVersion())
}

func versionOf(g *blixardv1.Group, number uint64) *blixardv1.GroupVersion {
	for _, v := range g.GetVersions() {
		if v.GetNumber() == number {
			return v
		}
	}
	return nil
}

// rolloutWord says in a word how the newest version stands.
func rolloutWord(g *blixardv1.Group) string {
	state := newestVersion(g).GetState()
	switch {
	case g.GetDeleting():
		return "deleting"
	case g.GetSpec().GetPaused() && state != blixardv1.RolloutState_complete:
		return "paused"
	}
	return strings.ReplaceAll(state.String(), "_", " ")
}

func rolloutColor(word string) string {
	switch word {
	case "complete":
		return green
	case "failed", "rolled back":
		return red
	case "superseded", "deleting":
		return faint
	}
	return yellow
}

// groupMessage says what keeps a group from what it shall be.
func groupMessage(g *blixardv1.Group) string {
	if m := g.GetStatus().GetMessage(); m != "" {
		return m
	}
	if v := newestVersion(g); v.GetMessage() != "" {
		return v.GetMessage()
	}
	if v := newestVersion(g); v.GetRollback() {
		return v.GetCause()
	}
	return ""
}

func (a *app) groupListCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List groups", Args: cobra.NoArgs,
		Example: "  blixard group list\n  blixard group list -o json | jq -r '.groups[].name'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				groups, err := listGroups(ctx, c)
				if err != nil {
					return err
				}
				groups = slices.DeleteFunc(groups, func(g *blixardv1.Group) bool { return !a.ofProject(g) })
				raw, err := list("groups", groups)
				if err != nil {
					return err
				}
				return a.print(raw, func() error { return a.writeGroups(groups, quiet) })
			})
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the names alone")
	return cmd
}

func (a *app) writeGroups(groups []*blixardv1.Group, quiet bool) error {
	t := &table{
		header: []string{"NAME", "REPLICAS", "READY", "AVAILABLE", "VERSION", "ROLLOUT", "IMAGE", "AGE", "MESSAGE"}, shrink: []int{8, 6},
		color: func(column int, cell string) string {
			if column == 5 {
				return rolloutColor(cell)
			}
			return ""
		},
	}
	for _, g := range groups {
		if quiet {
			if _, err := fmt.Fprintln(a.stdout, clean(g.GetName())); err != nil {
				return err
			}
			continue
		}
		st := g.GetStatus()
		t.add(g.GetName(), fmt.Sprint(g.GetSpec().GetReplicas()), fmt.Sprint(st.GetReady()), fmt.Sprint(st.GetAvailable()), fmt.Sprint(st.GetVersion()),
			rolloutWord(g), g.GetSpec().GetVm().GetImage(), since(g.GetCreatedAt()), groupMessage(g))
	}
	if quiet {
		return nil
	}
	return a.writeTable(t)
}

func rolloutFacts(g *blixardv1.Group) [][2]string {
	st, v := g.GetStatus(), newestVersion(g)
	return [][2]string{
		{"Version", fmt.Sprintf("%d (%s)", st.GetVersion(), v.GetCause())},
		{"Rollout", rolloutWord(g)},
		{"Message", groupMessage(g)},
		{"Updated", fmt.Sprintf("%d of %d, %d available", st.GetUpdated(), g.GetSpec().GetReplicas(), st.GetUpdatedAvailable())},
		{"Replicas", fmt.Sprintf("%d, %d ready, %d available", st.GetReplicas(), st.GetReady(), st.GetAvailable())},
	}
}

func (a *app) groupStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status NAME", Aliases: []string{"show", "get"}, Short: "Show a group and its VMs", Args: exactly("NAME"), ValidArgsFunction: a.completeGroups,
		Example: "  blixard group status web\n  blixard group status web -o json | jq .group.status",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withGroup(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Groups().GetGroup(ctx, &blixardv1.GetGroupRequest{Name: a.full(args[0])})
				if err != nil {
					return err
				}
				return a.print(resp, func() error { return a.showGroup(resp.GetGroup(), resp.GetVms()) })
			})
		},
	}
}

func (a *app) showGroup(g *blixardv1.Group, vms []*blixardv1.VM) error {
	u := g.GetSpec().GetUpdate()
	rules := fmt.Sprintf("max surge %d, max unavailable %d, available after %s, fails after %s", u.GetMaxSurge(), u.GetMaxUnavailable(),
		units.HumanDuration(u.GetMinHealthy().AsDuration()), units.HumanDuration(u.GetProgressDeadline().AsDuration()))
	if u.GetCanary() > 0 {
		rules += fmt.Sprintf(", %d canaries", u.GetCanary())
	}
	if u.GetAutoRollback() {
		rules += ", rolled back when it fails"
	}
	rows := append([][2]string{
		{"Name", g.GetName()},
		{"ID", g.GetId()},
		{"Image", g.GetSpec().GetVm().GetImage()},
		{"Command", strings.Join(g.GetSpec().GetVm().GetCommand(), " ")},
		{"Project", g.GetProject()},
	}, rolloutFacts(g)...)
	rows = append(rows, [2]string{"Rules", rules}, [2]string{"Created", at(g.GetCreatedAt())}, [2]string{"Labels", labelsText(g.GetSpec().GetLabels())})
	if err := a.facts(rows); err != nil || len(vms) == 0 {
		return err
	}
	if _, err := fmt.Fprintln(a.stdout); err != nil {
		return err
	}
	slices.SortFunc(vms, func(x, y *blixardv1.VM) int {
		if x.GetReplica().GetOrdinal() != y.GetReplica().GetOrdinal() {
			return int(x.GetReplica().GetOrdinal()) - int(y.GetReplica().GetOrdinal())
		}
		return strings.Compare(x.GetName(), y.GetName())
	})
	t := &table{header: []string{"VM", "TEMPLATE", "STATE", "HEALTH", "NODE", "READY", "MESSAGE"}, shrink: []int{6}}
	for _, vm := range vms {
		st := vm.GetStatus()
		state, health, ready, message := st.GetState().String(), "", "", st.GetMessage()
		if vm.GetDeleting() {
			state = "deleting"
		}
		if st.GetHealth() != 0 {
			health = st.GetHealth().String()
		}
		if s := vm.GetReadySince(); s != nil {
			ready, message = since(s), ""
		}
		t.add(vm.GetName(), fmt.Sprint(vm.GetReplica().GetVersion()), state, health, st.GetNode(), ready, message)
	}
	return a.writeTable(t)
}

func (a *app) groupHistoryCommand() *cobra.Command {
	return &cobra.Command{
		Use: "history NAME", Short: "List the versions of a group", Args: exactly("NAME"), ValidArgsFunction: a.completeGroups,
		Long:    "List the versions of a group, at most ten of them: what they run, who made them, and what became of their rollouts.",
		Example: "  blixard group history web\n  blixard group history web -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withGroup(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Groups().GetGroup(ctx, &blixardv1.GetGroupRequest{Name: a.full(args[0])})
				if err != nil {
					return err
				}
				raw, err := list("versions", resp.GetGroup().GetVersions())
				if err != nil {
					return err
				}
				return a.print(raw, func() error {
					t := &table{header: []string{"VERSION", "ROLLOUT", "CAUSE", "IMAGE", "COMMAND", "BY", "AGE", "MESSAGE"}, shrink: []int{7, 4, 2}}
					for _, v := range resp.GetGroup().GetVersions() {
						t.add(fmt.Sprint(v.GetNumber()), strings.ReplaceAll(v.GetState().String(), "_", " "), v.GetCause(), v.GetVm().GetImage(),
							strings.Join(v.GetVm().GetCommand(), " "), v.GetActor(), since(v.GetCreatedAt()), v.GetMessage())
					}
					return a.writeTable(t)
				})
			})
		},
	}
}

// groupChanged says what was done, after the rollout if it is to be waited for.
func (a *app) groupChanged(ctx context.Context, c *client.Client, g *blixardv1.Group, wait bool, done string) error {
	if !wait {
		return a.say(g, "%s %s", g.GetName(), done)
	}
	g, err := a.awaitGroup(ctx, c, g)
	if err != nil {
		return err
	}
	if v := newestVersion(g); v.GetState() == blixardv1.RolloutState_canary {
		return a.say(g, "%s %s: %s", g.GetName(), done, v.GetMessage())
	}
	st := g.GetStatus()
	return a.say(g, "%s %s: %d replicas of version %d are available", g.GetName(), done, st.GetAvailable(), st.GetVersion())
}

// awaitGroup waits until the rollout of the version that g has ended, and until the group
// has its number of replicas. Its error is the rollout's.
func (a *app) awaitGroup(ctx context.Context, c *client.Client, g *blixardv1.Group) (*blixardv1.Group, error) {
	if a.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(a.timeout))
		defer cancel()
	}
	p := a.progress("group " + g.GetName() + " begins")
	defer p.stop()
	want := g.GetStatus().GetVersion()
	for m, err := range c.WatchGroups(ctx, g.GetId()) {
		switch {
		case err != nil:
			return nil, err
		case m.GetSynced():
			continue
		case m.GetDeleted():
			return nil, problem.New(problem.NotFound, "group.not_found", "group %q was deleted", g.GetName())
		}
		now := m.GetGroup()
		st := now.GetStatus()
		ended, err := rolloutEnd(now, want)
		if err != nil || ended {
			return now, err
		}
		p.set("group %s: version %d is %s, %d of %d replicas are updated and %d available %s", now.GetName(), st.GetVersion(), rolloutWord(now),
			st.GetUpdated(), now.GetSpec().GetReplicas(), st.GetAvailable(), groupMessage(now))
	}
	return nil, problem.From(context.Cause(ctx))
}

// rolloutEnd reports whether the rollout of a version ended well, and gives an error when it
// ended otherwise.
func rolloutEnd(g *blixardv1.Group, want uint64) (bool, error) {
	v := versionOf(g, want)
	failure := func(code, format string, args ...any) error {
		return &exitError{code: exitFailure, err: problem.New(problem.Conflict, code, format, args...).
			WithHint("see `blixard group status %s` and `blixard group history %s`", g.GetName(), g.GetName())}
	}
	switch v.GetState() {
	case blixardv1.RolloutState_failed:
		return false, failure("group.rollout_failed", "version %d of group %q failed: %s", want, g.GetName(), v.GetMessage())
	case blixardv1.RolloutState_rolled_back:
		return false, failure("group.rolled_back", "version %d of group %q failed and was rolled back: %s", want, g.GetName(), v.GetMessage())
	case blixardv1.RolloutState_superseded, blixardv1.RolloutState_unspecified:
		return false, failure("group.superseded", "version %d of group %q was superseded by version %d", want, g.GetName(), g.GetStatus().GetVersion())
	case blixardv1.RolloutState_canary:
		return true, nil
	case blixardv1.RolloutState_complete:
		st, wished := g.GetStatus(), g.GetSpec().GetReplicas()
		return want < st.GetVersion() || st.GetReplicas() == wished && st.GetAvailable() == wished, nil
	}
	if g.GetSpec().GetPaused() && g.GetStatus().GetGoodVersion() != 0 {
		return false, failure("group.paused", "the rollout of version %d of group %q is paused", want, g.GetName())
	}
	return false, nil
}

// awaitGone waits until a group and its VMs are gone.
func (a *app) awaitGone(ctx context.Context, c *client.Client, g *blixardv1.Group) error {
	ctx, cancel := a.waiting(ctx)
	defer cancel()
	p := a.progress("group " + g.GetName() + " is being deleted")
	defer p.stop()
	for m, err := range c.WatchGroups(ctx, g.GetId()) {
		switch {
		case problem.HasCode(err, "group.not_found") || m.GetDeleted():
			return nil
		case err != nil:
			return err
		}
	}
	return problem.From(context.Cause(ctx))
}
