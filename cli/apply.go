package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/manifest"
	"github.com/blixard/blixard/internal/problem"
)

// applyFlags are those of apply.
type applyFlags struct {
	files        []string
	dryRun, wait bool
	restart      bool
	prune        bool
	labels       []string
}

func (a *app) applyCommand() *cobra.Command {
	var f applyFlags
	cmd := &cobra.Command{
		Use: "apply -f FILE|DIR|-", Short: "Make the cluster as files say: VMs, groups, schedules, tasks, volumes and networks", Args: exactly(),
		Long: `Make VMs, groups, schedules, tasks, volumes and networks as files declare them: what is missing is made, what differs is changed, what is
equal stays untouched. Files are YAML, JSON or TOML, with the fields that "vm inspect", "group status -o yaml" and "schedule status -o yaml" show;
one file may have several objects, each with kind (Network, Volume, VM, Group, Schedule or Task) and name.

Networks are made first, then volumes, VMs, groups, schedules and tasks, each task behind those that it comes after. Changes that need a restart
of a VM wait for its next one, unless --restart is given; those of a group roll out. A task is submitted once: while the cluster knows it, finished
or not, it stays untouched, and one that differs is refused. With --prune, VMs, groups, schedules and tasks that have the labels of -l and stand in
no file are deleted; volumes and networks never are.`,
		Example: `  blixard apply -f site.yaml
  blixard apply -f site/ --wait
  blixard vm inspect web | sed 's/memoryMib: .*/memoryMib: 512/' | blixard apply -f - --restart
  blixard apply -f site/ --prune -l site=prod`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			wanted, err := parseLabels(f.labels)
			if err != nil {
				return err
			}
			if f.prune == (len(wanted) == 0) {
				return usageError("--prune and -l go together").WithHint("write --prune -l KEY=VALUE: what has that label and stands in no file is deleted")
			}
			objects, err := a.readManifests(f.files)
			if err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.apply(ctx, c, objects, &f, wanted)
			})
		},
	}
	filesFlag(cmd, &f.files)
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "change nothing, and show what would change")
	cmd.Flags().BoolVar(&f.wait, "wait", false, "wait until the VMs run, the rollouts of groups have ended and the tasks have succeeded")
	cmd.Flags().BoolVar(&f.restart, "restart", false, "restart VMs where a change needs it")
	cmd.Flags().BoolVar(&f.prune, "prune", false, "delete VMs, groups, schedules and tasks with the labels of -l that stand in no file")
	cmd.Flags().StringArrayVarP(&f.labels, "label", "l", nil, "label KEY=VALUE of what --prune is about; may be repeated")
	return cmd
}

func (a *app) diffCommand() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use: "diff -f FILE|DIR|-", Short: "Show how the cluster differs from files", Args: exactly(),
		Long:    fmt.Sprintf("Show what \"apply\" would change, field by field. The exit code is %d when something differs, and 0 when nothing does.", exitDiffers),
		Example: "  blixard diff -f site.yaml\n  blixard diff -f site/ || blixard apply -f site/",
		RunE: func(cmd *cobra.Command, _ []string) error {
			objects, err := a.readManifests(files)
			if err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				steps, err := planApply(ctx, c, objects)
				if err != nil {
					return err
				}
				if err := a.printSteps(steps, true); err != nil {
					return err
				}
				if slices.ContainsFunc(steps, func(s *step) bool { return s.action != actionKeep }) {
					return &exitError{code: exitDiffers}
				}
				return nil
			})
		},
	}
	filesFlag(cmd, &files)
	return cmd
}

// filesFlag is for commands that read manifests.
func filesFlag(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringArrayVarP(files, "filename", "f", nil, "file, directory of files (.yaml, .yml, .json, .toml), or - for standard input; may be repeated")
}

// manifestExtensions are what is read of a directory.
var manifestExtensions = []string{".yaml", ".yml", ".json", ".toml"}

// readManifests gives the objects of all files, as they are made.
func (a *app) readManifests(paths []string) ([]*manifest.Object, error) {
	if len(paths) == 0 {
		return nil, usageError("the files are missing").WithHint("write -f FILE, -f DIRECTORY, or -f - for standard input")
	}
	var objects []*manifest.Object
	var all []error
	read := func(name string, from io.Reader) error {
		data, err := io.ReadAll(io.LimitReader(from, manifest.BytesMax+1))
		if err != nil {
			return usageError("%s can't be read", name).WithCause(err).WithHint("name a file that can be read")
		}
		some, err := manifest.Read(name, data)
		if err != nil {
			all = append(all, err)
		}
		if objects = append(objects, some...); len(objects) > manifest.ObjectsMax {
			return usageError("more than %d objects", manifest.ObjectsMax).WithHint("apply them in several calls")
		}
		return nil
	}
	for _, path := range paths {
		if path == "-" {
			if err := read("standard input", a.stdin); err != nil {
				return nil, err
			}
			continue
		}
		files, err := manifestFiles(path)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			f, err := os.Open(file)
			if err != nil {
				return nil, usageError("%s can't be read", file).WithCause(err).WithHint("name a file that can be read")
			}
			err = read(file, f)
			_ = f.Close()
			if err != nil {
				return nil, err
			}
		}
	}
	if len(all) > 0 {
		return nil, errors.Join(all...)
	}
	if len(objects) == 0 {
		return nil, usageError("there is no object in %s", strings.Join(paths, ", ")).WithHint("an object begins with kind: %s", strings.Join(manifest.Kinds(), ", "))
	}
	return objects, manifest.Sort(objects)
}

// manifestFiles gives a file itself, or those of a directory by name.
func manifestFiles(path string) ([]string, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, problem.New(problem.NotFound, "manifest.not_found", "there is no file %s", path).WithHint("name a file, a directory, or - for standard input")
	}
	if err != nil {
		return nil, usageError("%s can't be read", path).WithCause(err).WithHint("name a file that can be read")
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, usageError("%s can't be read", path).WithCause(err).WithHint("name a directory that can be read")
	}
	var files []string
	for _, e := range entries {
		if !e.IsDir() && slices.Contains(manifestExtensions, strings.ToLower(filepath.Ext(e.Name()))) {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	if len(files) == 0 {
		return nil, problem.New(problem.NotFound, "manifest.not_found", "the directory %s has no file that ends in %s", path, strings.Join(manifestExtensions, ", ")).
			WithHint("name the directory of your files")
	}
	return files, nil
}

// printSteps shows what was done or, with fields, what would be.
func (a *app) printSteps(steps []*step, withFields bool) error {
	type change struct {
		Path   string `json:"path"`
		Before string `json:"before,omitempty"`
		After  string `json:"after,omitempty"`
	}
	type line struct {
		Kind    string   `json:"kind"`
		Name    string   `json:"name"`
		Action  string   `json:"action"`
		Changes []change `json:"changes,omitempty"`
	}
	var lines []line
	for _, s := range steps {
		one := line{Kind: s.Kind, Name: s.Name, Action: s.action}
		for _, c := range s.changes {
			one.Changes = append(one.Changes, change{Path: c.path, Before: c.before, After: c.after})
		}
		lines = append(lines, one)
	}
	raw, err := json.Marshal(map[string]any{"objects": lines})
	if err != nil {
		return err
	}
	return a.print(json.RawMessage(raw), func() error {
		for _, s := range steps {
			if err := a.printStep(s, withFields); err != nil {
				return err
			}
		}
		return nil
	})
}

// valueBytesMax of a value are shown.
const valueBytesMax = 120

func (a *app) printStep(s *step, withFields bool) error {
	words := map[string]string{actionCreate: "created", actionUpdate: "changed", actionKeep: "unchanged"}
	if withFields {
		words = map[string]string{actionCreate: "would be created", actionUpdate: "would change", actionKeep: "would stay"}
	}
	if _, err := fmt.Fprintf(a.stdout, "%s %s %s\n", strings.ToLower(s.Kind), clean(s.Name), words[s.action]); err != nil || !withFields || s.action != actionUpdate {
		return err
	}
	short := func(text string) string {
		if text == "" {
			return "(none)"
		}
		if len(text) > valueBytesMax {
			text = text[:valueBytesMax] + "..."
		}
		return clean(text)
	}
	for _, c := range s.changes {
		if _, err := fmt.Fprintf(a.stdout, "  %s: %s -> %s\n", clean(c.path), short(c.before), short(c.after)); err != nil {
			return err
		}
	}
	return nil
}

// apply carries a plan out, in its order. It ends at the first failure: what was made
// stays, and the next apply goes on.
func (a *app) apply(ctx context.Context, c *client.Client, objects []*manifest.Object, f *applyFlags, pruned map[string]string) error {
	steps, err := planApply(ctx, c, objects)
	if err != nil {
		return err
	}
	var gone []*step
	if f.prune {
		if gone, err = prunable(ctx, c, objects, pruned); err != nil {
			return err
		}
	}
	if f.dryRun {
		if err := a.printSteps(steps, true); err != nil {
			return err
		}
		return a.sayPruned(gone, "would be deleted")
	}
	var restart []string
	for _, s := range steps {
		vm, err := a.carryOut(ctx, c, s, f.restart)
		if err != nil {
			return about(s.Object, err)
		}
		if len(vm.GetStatus().GetRestartNeeded()) > 0 {
			restart = append(restart, vm.GetName())
		}
	}
	if _, err := a.deleteSteps(ctx, c, gone, false); err != nil {
		return err
	}
	if f.wait {
		for _, s := range steps {
			if s.group != nil {
				if _, err := a.awaitGroup(ctx, c, s.group); err != nil {
					return err
				}
			}
			if s.task != nil {
				if err := a.awaitTask(ctx, c, s); err != nil {
					return err
				}
			}
			if s.Kind == manifest.KindVM && s.spec.GetDesired() == blixardv1.DesiredState_run {
				resp, err := c.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: s.Name})
				if err == nil {
					_, err = a.waitRunning(ctx, c, resp.GetVm(), s.starts)
				}
				if err != nil {
					return about(s.Object, err)
				}
			}
		}
	}
	if err := a.printSteps(steps, false); err != nil {
		return err
	}
	if err := a.sayPruned(gone, "deleted"); err != nil || len(restart) == 0 {
		return err
	}
	_, err = fmt.Fprintf(a.stderr, "what can't change while a VM runs takes effect with the next start: blixard vm restart %s\n", clean(strings.Join(restart, " ")))
	return err
}

// carryOut makes or changes one object, and gives a VM as it is then.
func (a *app) carryOut(ctx context.Context, c *client.Client, s *step, restart bool) (*blixardv1.VM, error) {
	switch {
	case s.Kind == manifest.KindVM && s.action == actionKeep:
		return s.restarted(ctx, c, s.vm, restart)
	case s.action == actionKeep:
		return nil, nil
	case s.Kind == manifest.KindNetwork && s.network == nil:
		s.Network.IdempotencyKey = client.NewKey()
		_, err := c.Networks().CreateNetwork(ctx, s.Network)
		return nil, err
	case s.Kind == manifest.KindNetwork:
		_, err := c.Networks().UpdateNetwork(ctx, &blixardv1.UpdateNetworkRequest{
			Name: s.Name, ExpectedIndex: s.network.GetModifyIndex(), Rules: s.Network.GetRules(), IdempotencyKey: client.NewKey(),
		})
		return nil, err
	case s.Kind == manifest.KindVolume && s.volume == nil:
		s.Volume.IdempotencyKey = client.NewKey()
		_, err := c.Volumes().CreateVolume(ctx, s.Volume)
		return nil, err
	case s.Kind == manifest.KindVolume:
		_, err := c.Volumes().ResizeVolume(ctx, &blixardv1.ResizeVolumeRequest{Name: s.Name, SizeBytes: s.Volume.GetSizeBytes(), IdempotencyKey: client.NewKey()})
		return nil, err
	case s.Kind == manifest.KindGroup && s.group == nil:
		s.Group.IdempotencyKey = client.NewKey()
		resp, err := c.Groups().CreateGroup(ctx, s.Group)
		s.group = resp.GetGroup()
		return nil, err
	case s.Kind == manifest.KindGroup:
		resp, err := c.Groups().UpdateGroup(ctx, &blixardv1.UpdateGroupRequest{
			Name: s.Name, ExpectedGeneration: s.group.GetGeneration(), Spec: s.groupSpec, IdempotencyKey: client.NewKey(),
		})
		s.group = resp.GetGroup()
		return nil, err
	case s.Kind == manifest.KindSchedule && s.schedule == nil:
		s.Schedule.IdempotencyKey = client.NewKey()
		_, err := c.Schedules().CreateSchedule(ctx, s.Schedule)
		return nil, err
	case s.Kind == manifest.KindSchedule:
		// Its index changes with every run, so it is not held against.
		_, err := c.Schedules().UpdateSchedule(ctx, &blixardv1.UpdateScheduleRequest{
			Name: s.Name, Spec: s.scheduleSpec, Labels: s.Schedule.GetLabels(), IdempotencyKey: client.NewKey(),
		})
		return nil, err
	case s.Kind == manifest.KindTask:
		s.Task.IdempotencyKey = client.NewKey()
		resp, err := c.Tasks().SubmitTask(ctx, s.Task)
		s.task = resp.GetTask()
		return nil, err
	case s.vm == nil:
		s.VM.IdempotencyKey = client.NewKey()
		resp, err := c.VMs().CreateVM(ctx, s.VM)
		return resp.GetVm(), err
	}
	return a.changeVM(ctx, c, s, restart)
}

// changeVM makes a VM what a file says: labels, spec, and whether it runs.
func (a *app) changeVM(ctx context.Context, c *client.Client, s *step, restart bool) (*blixardv1.VM, error) {
	vm := s.vm
	if !maps.Equal(vm.GetLabels(), s.VM.GetLabels()) {
		resp, err := c.VMs().LabelVM(ctx, &blixardv1.LabelVMRequest{Name: vm.GetId(), ExpectedIndex: vm.GetModifyIndex(), Labels: s.VM.GetLabels(), IdempotencyKey: client.NewKey()})
		if err != nil {
			return nil, err
		}
		vm = proto.CloneOf(vm)
		vm.ModifyIndex = resp.GetModifyIndex()
	}
	running := vm.GetSpec().GetDesired() == blixardv1.DesiredState_run
	update := func() error {
		resp, err := c.VMs().UpdateVM(ctx, &blixardv1.UpdateVMRequest{Name: vm.GetId(), ExpectedIndex: vm.GetModifyIndex(), Spec: s.spec, IdempotencyKey: client.NewKey()})
		if err == nil {
			vm = resp.GetVm()
		}
		return err
	}
	err := update()
	if problem.HasCode(err, "vm.running") && restart {
		// What it has can only be exchanged while it is stopped.
		resp, stop := c.VMs().StopVM(ctx, &blixardv1.StopVMRequest{Name: vm.GetId(), IdempotencyKey: client.NewKey()})
		if stop != nil {
			return nil, stop
		}
		if vm, err = a.waitFor(ctx, c, resp.GetVm(), "stopped", ended); err == nil {
			err = update()
		}
		running = false
	}
	if err != nil {
		return nil, err
	}
	switch want := s.spec.GetDesired(); {
	case want == blixardv1.DesiredState_stop && running:
		resp, err := c.VMs().StopVM(ctx, &blixardv1.StopVMRequest{Name: vm.GetId(), IdempotencyKey: client.NewKey()})
		return resp.GetVm(), err
	case want == blixardv1.DesiredState_run && !running:
		if ended(vm) {
			s.starts = vm.GetStatus().GetStartCount() + 1
		}
		resp, err := c.VMs().StartVM(ctx, &blixardv1.StartVMRequest{Name: vm.GetId(), IdempotencyKey: client.NewKey()})
		return resp.GetVm(), err
	case want == blixardv1.DesiredState_run:
		return s.restarted(ctx, c, acted(ctx, c, vm), restart)
	}
	return vm, nil
}

// actedMax is how long a node may take to say what of a change waits for a restart.
const actedMax = 5 * time.Second

// acted waits until the VM's node has seen its newest spec, and gives the VM as it is
// then; or as it was, when the node says nothing.
func acted(ctx context.Context, c *client.Client, vm *blixardv1.VM) *blixardv1.VM {
	ctx, cancel := context.WithTimeout(ctx, actedMax)
	defer cancel()
	last, err := c.WaitVM(ctx, vm.GetId(), func(now *blixardv1.VM, deleted bool) (bool, error) {
		st := now.GetStatus()
		return deleted || st.GetObservedGeneration() >= vm.GetGeneration() || len(st.GetRestartNeeded()) > 0 || ended(now), nil
	})
	if err != nil || last == nil {
		return vm
	}
	return last
}

// restarted restarts a VM that needs it, if it is to.
func (s *step) restarted(ctx context.Context, c *client.Client, vm *blixardv1.VM, restart bool) (*blixardv1.VM, error) {
	if !restart || len(vm.GetStatus().GetRestartNeeded()) == 0 {
		return vm, nil
	}
	s.starts = max(1, vm.GetStatus().GetStartCount()) + 1
	if _, err := c.VMs().RestartVM(ctx, &blixardv1.RestartVMRequest{Name: vm.GetId(), IdempotencyKey: client.NewKey()}); err != nil {
		return nil, err
	}
	return nil, nil // its needs are met
}
