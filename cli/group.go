package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/nearest"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

func (a *app) groupCommand() *cobra.Command {
	return a.ofProjects(noun("group", "Keep a number of VMs of one kind running", []string{"groups"},
		a.groupCreateCommand(), a.groupListCommand(), a.groupStatusCommand(), a.groupScaleCommand(), a.groupUpdateCommand(),
		a.groupRolloutCommand(), a.groupHistoryCommand(), a.groupUndoCommand(), a.groupDeleteCommand()))
}

// groupFlags are the flags of groups beside those of their VMs.
type groupFlags struct {
	spec                                    specFlags
	replicas, surge, unavailable, canary    uint32
	autoPromote, autoRollback, stable, wait bool
	minHealthy, deadline                    durationFlag
	volumes                                 []string
}

func (g *groupFlags) register(cmd *cobra.Command) {
	all := &cobra.Command{}
	g.spec.register(all)
	all.Flags().VisitAll(func(f *pflag.Flag) {
		if !slices.Contains([]string{"name", "interactive", "rm"}, f.Name) {
			cmd.Flags().AddFlag(f)
		}
	})
	g.spec.cmd = cmd
	f := cmd.Flags()
	f.Uint32Var(&g.replicas, "replicas", 1, "how many VMs there shall be, from 0 to 1000")
	f.Uint32Var(&g.surge, "max-surge", 1, "VMs beyond --replicas that an update may have (default with --stable: 0)")
	f.Uint32Var(&g.unavailable, "max-unavailable", 0, "VMs of --replicas that an update may leave out (default with --max-surge 0: 1)")
	f.Uint32Var(&g.canary, "canary", 0, "begin an update with so many VMs, and wait for \"group rollout promote\"")
	f.BoolVar(&g.autoPromote, "auto-promote", false, "go on by itself once the canaries are available")
	f.Var(&g.minHealthy, "min-healthy", "a VM is available when it ran, and was healthy, for that time (default: 5s)")
	f.Var(&g.deadline, "progress-deadline", "an update fails that makes no VM available for that time (default: 10m)")
	f.BoolVar(&g.autoRollback, "auto-rollback", false, "go back to the version before when an update fails")
	f.BoolVar(&g.wait, "wait", false, "wait until the rollout ended, and fail when it did")
	f.SetInterspersed(false)
}

// apply puts into spec what those flags say that are given.
func (g *groupFlags) apply(spec *blixardv1.GroupSpec, given func(flag string) bool) error {
	if spec.Update == nil {
		spec.Update = &blixardv1.UpdateRules{}
	}
	u, changed := spec.Update, g.spec.cmd.Flags().Changed
	if given("replicas") {
		spec.Replicas = g.replicas
	}
	if changed("max-surge") {
		u.MaxSurge = &g.surge
	}
	if changed("max-unavailable") {
		u.MaxUnavailable = &g.unavailable
	}
	if given("canary") {
		u.Canary = g.canary
	}
	if given("auto-promote") {
		u.AutoPromote = g.autoPromote
	}
	if given("auto-rollback") {
		u.AutoRollback = g.autoRollback
	}
	if changed("min-healthy") {
		u.MinHealthy = durationpb.New(time.Duration(g.minHealthy))
	}
	if changed("progress-deadline") {
		u.ProgressDeadline = durationpb.New(time.Duration(g.deadline))
	}
	if given("label") {
		labels, err := parseLabels(g.spec.labels)
		if err != nil {
			return err
		}
		spec.Labels = labels
	}
	for _, text := range g.volumes {
		parts := strings.Split(text, ":")
		if len(parts) != 3 {
			return usageError("--replica-volume %q is not NAME:PATH:SIZE", text).WithHint("write --replica-volume data:/srv:1GiB")
		}
		size, err := units.ParseSize(parts[2])
		if err != nil {
			return usageError("--replica-volume %q: %v", text, err).WithHint("write --replica-volume data:/srv:1GiB")
		}
		spec.Volumes = append(spec.Volumes, &blixardv1.ReplicaVolume{Name: parts[0], Path: parts[1], SizeBytes: uint64(size)})
	}
	return g.spec.apply(spec.Vm, given)
}

// groupLine takes apart "NAME IMAGE [flags] [--] COMMAND...".
func groupLine(cmd *cobra.Command, args []string) (name, image string, command []string, err error) {
	name, rest, err := commandLine(cmd, args)
	if err != nil || len(rest) == 0 {
		return name, "", nil, err
	}
	image, command, err = commandLine(cmd, rest)
	return name, image, command, err
}

func (a *app) groupCreateCommand() *cobra.Command {
	var g groupFlags
	cmd := &cobra.Command{
		Use: "create NAME IMAGE [flags] [--] [COMMAND [ARG]...]", Short: "Declare a group of VMs",
		Long: `Declare a group: a number of VMs of one kind, its replicas. A replica that ends, or is deleted, is replaced. "group update" changes
them a few at a time, and goes on only while what is changed runs well.

The VMs are named NAME- and five letters. With --stable they are NAME-0, NAME-1 and so on, are replaced in place, and can have volumes of
their own that stay when the VM is replaced: --replica-volume data:/srv:1GiB makes data-NAME-0, data-NAME-1 and so on.`,
		Example: `  blixard group create web nginx:1.27 --replicas 3 --wait
  blixard group create web busybox --replicas 3 --health-tcp 80 --auto-rollback -- httpd -f -h /
  blixard group create db postgres:16 --replicas 3 --stable --replica-volume data:/var/lib/postgresql/data:10GiB`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, image, command, err := groupLine(cmd, args)
			if err != nil || askedForHelp(cmd) {
				return orHelp(cmd, err)
			}
			if name == "" || image == "" {
				return usageError("NAME and IMAGE are needed").WithHint("write `blixard group create web nginx:1.27 --replicas 3`")
			}
			g.spec.project = a.project
			if err := g.spec.zeros(); err != nil {
				return err
			}
			spec := &blixardv1.GroupSpec{Stable: g.stable, Vm: &blixardv1.VMSpec{Image: image, Command: command}}
			if err := g.apply(spec, func(string) bool { return true }); err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Groups().CreateGroup(ctx, &blixardv1.CreateGroupRequest{Name: name, Spec: spec, Project: a.project, IdempotencyKey: client.NewKey()})
				if err != nil {
					return err
				}
				return a.groupChanged(ctx, c, resp.GetGroup(), g.wait, "created")
			})
		},
	}
	g.register(cmd)
	cmd.Flags().BoolVar(&g.stable, "stable", false, "name the VMs NAME-0, NAME-1 and so on, and replace them in place")
	cmd.Flags().StringArrayVar(&g.volumes, "replica-volume", nil, "give each VM a volume of its own: NAME:PATH:SIZE; may be repeated, needs --stable")
	return cmd
}

func (a *app) groupUpdateCommand() *cobra.Command {
	var g groupFlags
	cmd := &cobra.Command{
		Use: "update NAME [flags] [-- COMMAND [ARG]...]", Short: "Change the VMs of a group, or its rules",
		Long: `Change what the VMs of a group are, or its rules. Only what is named changes; a list, such as -e, replaces the former one, and -e none
and so on empty it. What changes the VMs makes a version, which is rolled out: a few replicas at a time are replaced, and the next only when
those are available. See "group rollout" for how it goes on, and "group undo" for the way back.`,
		Example: `  blixard group update web --image nginx:1.28 --wait
  blixard group update web -e MODE=fast --canary 1
  blixard group update web --max-surge 2 --auto-rollback`,
		Args: atLeastOne("NAME"), ValidArgsFunction: a.completeGroups,
		RunE: func(cmd *cobra.Command, args []string) error {
			name, command, err := commandLine(cmd, args)
			if err != nil || askedForHelp(cmd) {
				return orHelp(cmd, err)
			}
			g.spec.project = a.project
			if err := g.spec.zeros(); err != nil {
				return err
			}
			g.spec.emptyLists()
			name = a.full(name)
			return a.withGroup(cmd.Context(), name, func(ctx context.Context, c *client.Client) error {
				after, err := updateGroup(ctx, c, name, func(s *blixardv1.GroupSpec) error {
					if g.spec.image != "" {
						s.Vm.Image = g.spec.image
					}
					if len(command) > 0 {
						s.Vm.Command = command
					}
					return g.apply(s, cmd.Flags().Changed)
				})
				if err != nil {
					return err
				}
				return a.groupChanged(ctx, c, after, g.wait, "updated")
			})
		},
	}
	g.register(cmd)
	cmd.Flags().StringVar(&g.spec.image, "image", "", "image to run")
	_ = cmd.RegisterFlagCompletionFunc("image", a.completeImages)
	return cmd
}

// updateGroup changes a group's spec, again when another change was faster.
func updateGroup(ctx context.Context, c *client.Client, name string, edit func(*blixardv1.GroupSpec) error) (*blixardv1.Group, error) {
	for try := 1; ; try++ {
		got, err := c.Groups().GetGroup(ctx, &blixardv1.GetGroupRequest{Name: name})
		if err != nil {
			return nil, err
		}
		spec := proto.CloneOf(got.GetGroup().GetSpec())
		if err := edit(spec); err != nil {
			return nil, err
		}
		resp, err := c.Groups().UpdateGroup(ctx, &blixardv1.UpdateGroupRequest{
			Name: got.GetGroup().GetId(), ExpectedGeneration: got.GetGroup().GetGeneration(), Spec: spec, IdempotencyKey: client.NewKey(),
		})
		if problem.HasCode(err, "group.generation_mismatch") && try < labelTries {
			continue
		}
		return resp.GetGroup(), err
	}
}

func (a *app) groupScaleCommand() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "scale NAME REPLICAS", Short: "Change the number of VMs of a group", Args: exactly("NAME", "REPLICAS"), ValidArgsFunction: a.completeGroups,
		Long:    "Change the number of VMs of a group. Of stable ones the highest numbers go first, and their volumes stay for when they come back.",
		Example: "  blixard group scale web 5 --wait\n  blixard group scale web 0",
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := replicaCount(args[1])
			if err != nil {
				return err
			}
			return a.withGroup(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Groups().ScaleGroup(ctx, &blixardv1.ScaleGroupRequest{Name: a.full(args[0]), Replicas: n, IdempotencyKey: client.NewKey()})
				if err != nil {
					return err
				}
				return a.groupChanged(ctx, c, resp.GetGroup(), wait, fmt.Sprintf("scaled to %d", n))
			})
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until so many are available")
	return cmd
}

func (a *app) groupRolloutCommand() *cobra.Command {
	change := func(verb, done, short string, to blixardv1.GroupChange_Enum) *cobra.Command {
		var wait bool
		cmd := &cobra.Command{
			Use: verb + " NAME", Short: short, Args: exactly("NAME"), ValidArgsFunction: a.completeGroups,
			Example: "  blixard group rollout " + verb + " web",
			RunE: func(cmd *cobra.Command, args []string) error {
				return a.withGroup(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
					resp, err := c.Groups().RolloutGroup(ctx, &blixardv1.RolloutGroupRequest{Name: a.full(args[0]), Change: to, IdempotencyKey: client.NewKey()})
					if err != nil {
						return err
					}
					return a.groupChanged(ctx, c, resp.GetGroup(), wait, done)
				})
			},
		}
		if to != blixardv1.GroupChange_pause {
			cmd.Flags().BoolVar(&wait, "wait", false, "wait until the rollout ended, and fail when it did")
		}
		return cmd
	}
	var wait bool
	status := &cobra.Command{
		Use: "status NAME", Short: "Show how a rollout stands", Args: exactly("NAME"), ValidArgsFunction: a.completeGroups,
		Example: "  blixard group rollout status web\n  blixard group rollout status web --wait",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withGroup(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Groups().GetGroup(ctx, &blixardv1.GetGroupRequest{Name: a.full(args[0])})
				if err != nil {
					return err
				}
				g := resp.GetGroup()
				if wait {
					if g, err = a.awaitGroup(ctx, c, g); err != nil {
						return err
					}
				}
				return a.print(g, func() error { return a.facts(rolloutFacts(g)) })
			})
		},
	}
	status.Flags().BoolVar(&wait, "wait", false, "wait until the rollout ended, and fail when it did")
	return noun("rollout", "Look at and steer the rollout of a group's newest version", nil, status,
		change("pause", "paused", "Replace no more VMs until it is resumed", blixardv1.GroupChange_pause),
		change("resume", "resumed", "Let a paused rollout go on, or try one again that failed", blixardv1.GroupChange_resume),
		change("promote", "promoted", "Let a rollout go on beyond its canaries", blixardv1.GroupChange_promote),
		change("restart", "is restarted", "Replace all VMs by others of the same kind", blixardv1.GroupChange_restart))
}

func (a *app) groupUndoCommand() *cobra.Command {
	var wait bool
	var version uint64
	cmd := &cobra.Command{
		Use: "undo NAME", Short: "Go back to an earlier version", Args: exactly("NAME"), ValidArgsFunction: a.completeGroups,
		Long:    "Take the VMs' template of an earlier version: of the newest whose rollout was complete, or of --to-version. It becomes a version of its own.",
		Example: "  blixard group undo web --wait\n  blixard group undo web --to-version 2",
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("to-version") && version == 0 {
				return usageError("--to-version is 0").WithHint("versions count from 1: see `blixard group history %s`", args[0])
			}
			return a.withGroup(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Groups().UndoGroup(ctx, &blixardv1.UndoGroupRequest{Name: a.full(args[0]), Version: version, IdempotencyKey: client.NewKey()})
				if err != nil {
					return err
				}
				g := resp.GetGroup()
				return a.groupChanged(ctx, c, g, wait, fmt.Sprintf("goes back: version %d is an %s", g.GetStatus().GetVersion(), newestVersion(g).GetCause()))
			})
		},
	}
	cmd.Flags().Uint64Var(&version, "to-version", 0, "version to go back to (default: the newest before whose rollout was complete)")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the rollout ended, and fail when it did")
	return cmd
}

func (a *app) groupDeleteCommand() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Delete groups and their VMs; volumes stay", Args: atLeastOne("NAME"), ValidArgsFunction: a.completeGroups,
		Example: "  blixard group delete web --wait",
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, name := range a.fullNames(args) {
				errs = append(errs, a.withGroup(cmd.Context(), name, func(ctx context.Context, c *client.Client) error {
					resp, err := c.Groups().DeleteGroup(ctx, &blixardv1.DeleteGroupRequest{Name: name, IdempotencyKey: client.NewKey()})
					if err != nil {
						return err
					}
					g := resp.GetGroup()
					if wait {
						if err := a.awaitGone(ctx, c, g); err != nil {
							return err
						}
						return a.say(g, "%s deleted", g.GetName())
					}
					return a.say(g, "%s is being deleted", g.GetName())
				}))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until its VMs are gone")
	return cmd
}

// withGroup runs f, and names the nearest group when there is none of that name.
func (a *app) withGroup(ctx context.Context, name string, f func(context.Context, *client.Client) error) error {
	return a.withClient(ctx, func(ctx context.Context, c *client.Client) error {
		err := f(ctx, c)
		if err == nil || !problem.HasCode(err, "group.not_found") {
			return err
		}
		groups, listErr := listGroups(ctx, c)
		if listErr != nil {
			return err
		}
		var names []string
		for _, g := range groups {
			names = append(names, g.GetName())
		}
		if near := nearest.Of(name, names); near != "" {
			return problem.From(err).WithHint("did you mean %s? `blixard group list` shows the groups", near)
		}
		return err
	})
}

func listGroups(ctx context.Context, c *client.Client) ([]*blixardv1.Group, error) {
	var groups []*blixardv1.Group
	req := &blixardv1.ListGroupsRequest{}
	for {
		resp, err := c.Groups().ListGroups(ctx, req)
		if err != nil {
			return nil, err
		}
		groups = append(groups, resp.GetGroups()...)
		if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
			return groups, nil
		}
	}
}

func (a *app) completeGroups(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.ask(func(ctx context.Context, c *client.Client) (names []cobra.Completion) {
		groups, _ := listGroups(ctx, c)
		for _, g := range groups {
			if name, fits := a.completed(g, prefix); fits {
				names = append(names, cobra.CompletionWithDesc(name, rolloutWord(g)))
			}
		}
		return names
	})
}
