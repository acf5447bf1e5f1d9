package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/manifest"
	"github.com/blixard/blixard/internal/problem"
)

func (a *app) deleteCommand() *cobra.Command {
	var files []string
	var volumes bool
	cmd := &cobra.Command{
		Use: "delete -f FILE|DIR|-", Short: "Delete what files declare", Args: exactly(),
		Long: `Delete the VMs, groups, schedules and tasks that files declare, then their networks; tasks that are not finished are canceled first. Volumes stay,
unless --volumes is given: they are then deleted with all that is on them. What is not there is passed over.`,
		Example: "  blixard delete -f site.yaml\n  blixard delete -f site/ --volumes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			objects, err := a.readManifests(files)
			if err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.deleteObjects(ctx, c, objects, volumes)
			})
		},
	}
	filesFlag(cmd, &files)
	cmd.Flags().BoolVar(&volumes, "volumes", false, "delete volumes, too")
	return cmd
}

// deleteObjects deletes in the other order: what needs others first.
func (a *app) deleteObjects(ctx context.Context, c *client.Client, objects []*manifest.Object, volumes bool) error {
	var steps []*step
	for _, o := range objects {
		steps = append(steps, &step{Object: o, action: actionDelete})
	}
	gone, err := a.deleteSteps(ctx, c, steps, volumes)
	if err != nil {
		return err
	}
	return a.print(json.RawMessage(fmt.Sprintf(`{"deleted":%d}`, len(gone))), func() error {
		for _, s := range gone {
			if _, err := fmt.Fprintf(a.stdout, "%s %s deleted\n", strings.ToLower(s.Kind), clean(s.Name)); err != nil {
				return err
			}
		}
		return nil
	})
}

// deleteSteps deletes what is there of the objects, which are in the order in which they are
// made, and gives those. Volumes are left where they are not to go.
func (a *app) deleteSteps(ctx context.Context, c *client.Client, steps []*step, volumes bool) (gone []*step, err error) {
	done := func(s *step, err error) error {
		switch {
		case problem.Is(err, problem.NotFound):
		case err != nil:
			return about(s.Object, err)
		default:
			gone = append(gone, s)
		}
		return nil
	}
	// VMs that end together take no longer than one.
	var vms []*blixardv1.VM
	var groups []*blixardv1.Group
	for _, s := range slices.Backward(steps) {
		switch s.Kind {
		case manifest.KindTask:
			var vm *blixardv1.VM
			if vm, err = deleteTask(ctx, c, s.Name); vm != nil {
				vms = append(vms, vm)
			}
		case manifest.KindSchedule:
			_, err = c.Schedules().RemoveSchedule(ctx, &blixardv1.RemoveScheduleRequest{Name: s.Name, IdempotencyKey: client.NewKey()})
		case manifest.KindGroup:
			var resp *blixardv1.DeleteGroupResponse
			if resp, err = c.Groups().DeleteGroup(ctx, &blixardv1.DeleteGroupRequest{Name: s.Name, IdempotencyKey: client.NewKey()}); err == nil {
				groups = append(groups, resp.GetGroup())
			}
		case manifest.KindVM:
			var resp *blixardv1.DeleteVMResponse
			if resp, err = c.VMs().DeleteVM(ctx, &blixardv1.DeleteVMRequest{Name: s.Name, IdempotencyKey: client.NewKey()}); err == nil {
				vms = append(vms, resp.GetVm())
			}
		default:
			continue
		}
		if err := done(s, err); err != nil {
			return gone, err
		}
	}
	for _, g := range groups {
		if err := a.awaitGone(ctx, c, g); err != nil {
			return gone, err
		}
	}
	for _, vm := range vms {
		if _, err := a.waitGone(ctx, c, vm); err != nil {
			return gone, err
		}
	}
	for _, s := range slices.Backward(steps) {
		switch {
		case s.Kind == manifest.KindNetwork:
			_, err = c.Networks().DeleteNetwork(ctx, &blixardv1.DeleteNetworkRequest{Name: s.Name, IdempotencyKey: client.NewKey()})
		case s.Kind == manifest.KindVolume && volumes:
			_, err = c.Volumes().DeleteVolume(ctx, &blixardv1.DeleteVolumeRequest{Name: s.Name, IdempotencyKey: client.NewKey()})
		default:
			continue
		}
		if err := done(s, err); err != nil {
			return gone, err
		}
	}
	return gone, nil
}

// prunable are the VMs, groups, schedules and tasks with the labels that stand in no file.
// The VMs of a group or a task are not asked: they are that one's, and so are the runs of a
// schedule; arrays of tasks can't stand in files.
func prunable(ctx context.Context, c *client.Client, objects []*manifest.Object, labels map[string]string) ([]*step, error) {
	var gone []*step
	add := func(kind, name string) {
		if !slices.ContainsFunc(objects, func(o *manifest.Object) bool { return o.Kind == kind && o.Name == name }) {
			gone = append(gone, &step{Object: &manifest.Object{Kind: kind, Name: name, Where: "--prune"}, action: actionDelete})
		}
	}
	vms, err := c.AllVMs(ctx)
	if err != nil {
		return nil, err
	}
	for _, vm := range vms {
		if hasLabels(vm, labels) && !vm.GetDeleting() && vm.GetReplica() == nil && vm.GetTask() == "" {
			add(manifest.KindVM, vm.GetName())
		}
	}
	groups, err := listGroups(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		if hasLabels(g.GetSpec(), labels) && !g.GetDeleting() {
			add(manifest.KindGroup, g.GetName())
		}
	}
	all, err := schedules(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, one := range all {
		if hasLabels(one.GetSchedule(), labels) {
			add(manifest.KindSchedule, one.GetSchedule().GetName())
		}
	}
	tasks, err := allTasks(ctx, c, "")
	if err != nil {
		return nil, err
	}
	for _, t := range tasks {
		if hasLabels(t, labels) && t.GetSchedule() == "" && t.GetArray() == "" {
			add(manifest.KindTask, t.GetName())
		}
	}
	return gone, nil
}

func (a *app) sayPruned(gone []*step, words string) error {
	if a.output == "json" || a.output == "yaml" {
		return nil
	}
	for _, s := range gone {
		if _, err := fmt.Fprintf(a.stdout, "%s %s %s\n", strings.ToLower(s.Kind), clean(s.Name), words); err != nil {
			return err
		}
	}
	return nil
}
