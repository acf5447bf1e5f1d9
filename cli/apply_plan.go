package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/manifest"
	"github.com/blixard/blixard/internal/problem"
)

// step is what an object of a file needs.
type step struct {
	*manifest.Object
	// action is create, update, keep or delete, and changes are its fields.
	action  string
	changes []fieldChange
	// vm, volume and so on as it is; nil when it is to be made.
	vm       *blixardv1.VM
	volume   *blixardv1.Volume
	network  *blixardv1.Network
	group    *blixardv1.Group
	schedule *blixardv1.Schedule
	task     *blixardv1.Task
	// spec as it shall be, complete; groupSpec and scheduleSpec of those.
	spec         *blixardv1.VMSpec
	groupSpec    *blixardv1.GroupSpec
	scheduleSpec *blixardv1.ScheduleSpec
	// starts is the start of a VM that is to be waited for; an older one does not count.
	starts uint64
}

// fieldChange is a field, and its JSON before and after; empty when it is not there.
type fieldChange struct{ path, before, after string }

const (
	actionCreate = "create"
	actionUpdate = "update"
	actionKeep   = "keep"
	actionDelete = "delete"
)

// planApply compares each object with what is there.
func planApply(ctx context.Context, c *client.Client, objects []*manifest.Object) ([]*step, error) {
	var steps []*step
	var all []error
	for _, o := range objects {
		s := &step{Object: o, action: actionCreate}
		var err error
		switch o.Kind {
		case manifest.KindVM:
			err = s.planVM(ctx, c)
		case manifest.KindVolume:
			err = s.planVolume(ctx, c)
		case manifest.KindNetwork:
			err = s.planNetwork(ctx, c)
		case manifest.KindGroup:
			err = s.planGroup(ctx, c)
		case manifest.KindSchedule:
			err = s.planSchedule(ctx, c)
		case manifest.KindTask:
			err = s.planTask(ctx, c)
		}
		if err != nil {
			all = append(all, about(o, err))
			continue
		}
		if s.action != actionCreate && len(s.changes) == 0 {
			s.action = actionKeep
		}
		steps = append(steps, s)
	}
	return steps, errors.Join(all...)
}

// about says which object a problem is about, and which of its lines: one problem for each
// field that the cluster names.
func about(o *manifest.Object, err error) error {
	p := *problem.From(err)
	if len(p.Violations) == 0 {
		p.Message = o.Where + ": " + p.Message
		return &p
	}
	var all []error
	for _, v := range p.Violations {
		all = append(all, problem.New(p.Kind, p.Code, "%s: %s: %s", o.FieldWhere(v.Field), v.Field, cmp.Or(v.Message, p.Error())).WithHint("%s", p.Hint))
	}
	return errors.Join(all...)
}

// aboutVMs is about for a request with several VMs, in their order.
func aboutVMs(vms []*manifest.Object, err error) error {
	var all []error
	p := problem.From(err)
	for i, o := range vms {
		var fields []problem.Violation
		for _, v := range p.Violations {
			if field, ok := strings.CutPrefix(v.Field, fmt.Sprintf("vms[%d].", i)); ok {
				fields = append(fields, problem.Violation{Field: field, Message: v.Message})
			}
		}
		if len(fields) > 0 {
			all = append(all, about(o, p.WithViolations(fields)))
		}
	}
	if len(all) == 0 {
		return err
	}
	return errors.Join(all...)
}

func (s *step) planVM(ctx context.Context, c *client.Client) error {
	completed, err := c.VMs().ExplainVM(ctx, &blixardv1.ExplainVMRequest{Spec: s.VM.GetSpec(), Labels: s.VM.GetLabels()})
	if err != nil {
		return err
	}
	s.spec = completed.GetVm().GetSpec()
	resp, err := c.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: s.Name})
	before := &blixardv1.VM{}
	switch {
	case err == nil:
		s.action, s.vm, before = actionUpdate, resp.GetVm(), resp.GetVm()
		if err := s.sameProject(s.VM, before); err != nil {
			return err
		}
		// What commands do to a VM stays, unless the file says something of it.
		if s.VM.GetSpec().GetDesired() == blixardv1.DesiredState_unspecified {
			s.spec.Desired = before.GetSpec().GetDesired()
		}
		s.spec.Paused = s.VM.GetSpec().GetPaused() || before.GetSpec().GetPaused()
	case !problem.Is(err, problem.NotFound):
		return err
	}
	s.changes, err = changesOf(&blixardv1.VM{Spec: before.GetSpec(), Labels: before.GetLabels()}, &blixardv1.VM{Spec: s.spec, Labels: s.VM.GetLabels()})
	return err
}

func (s *step) planVolume(ctx context.Context, c *client.Client) error {
	resp, err := c.Volumes().GetVolume(ctx, &blixardv1.GetVolumeRequest{Name: s.Name})
	before := &blixardv1.Volume{}
	after := &blixardv1.Volume{SizeBytes: s.Volume.GetSizeBytes(), Labels: s.Volume.GetLabels(), Node: s.Volume.GetNode(), Project: s.Volume.GetProject()}
	switch {
	case err == nil:
		s.action, s.volume = actionUpdate, resp.GetVolume()
		if err := s.sameProject(s.Volume, s.volume); err != nil {
			return err
		}
		before = &blixardv1.Volume{SizeBytes: s.volume.GetSizeBytes(), Labels: s.volume.GetLabels(), Node: s.volume.GetNode(), Project: after.Project}
		if after.SizeBytes == 0 {
			after.SizeBytes = before.SizeBytes
		}
		if after.Node == "" {
			after.Node = before.Node
		}
		if after.Node != before.Node {
			return problem.New(problem.Conflict, "manifest.fixed", "volume %q is on node %q, not on %q", s.Name, before.Node, after.Node).
				WithHint("move it: blixard volume move %s %s", s.Name, after.Node).WithField("node")
		}
		if !maps.Equal(before.Labels, after.Labels) {
			return problem.New(problem.Conflict, "manifest.fixed", "labels of a volume can't change: volume %q has %q", s.Name, labelsText(before.Labels)).
				WithHint("write the same labels, or make another volume").WithField("labels")
		}
	case !problem.Is(err, problem.NotFound):
		return err
	}
	s.changes, err = changesOf(before, after)
	return err
}

func (s *step) planNetwork(ctx context.Context, c *client.Client) error {
	resp, err := c.Networks().GetNetwork(ctx, &blixardv1.GetNetworkRequest{Name: s.Name})
	want := s.Network
	before := &blixardv1.Network{}
	after := &blixardv1.Network{
		Type: want.GetType(), Ipv4Subnet: want.GetIpv4Subnet(), Ipv6Subnet: want.GetIpv6Subnet(), Mtu: want.GetMtu(), Rules: want.GetRules(), Labels: want.GetLabels(),
	}
	switch {
	case err == nil:
		s.action, s.network = actionUpdate, resp.GetNetwork()
		has := s.network
		before = &blixardv1.Network{Type: has.GetType(), Ipv4Subnet: has.GetIpv4Subnet(), Ipv6Subnet: has.GetIpv6Subnet(), Mtu: has.GetMtu(), Rules: has.GetRules(), Labels: has.GetLabels()}
		// What the file leaves out was chosen by the cluster.
		if after.Type == blixardv1.NetworkType_unspecified {
			after.Type = before.Type
		}
		for _, one := range []struct{ after, before *string }{{&after.Ipv4Subnet, &before.Ipv4Subnet}, {&after.Ipv6Subnet, &before.Ipv6Subnet}} {
			if *one.after == "" {
				*one.after = *one.before
			}
		}
		fixed := func(n *blixardv1.Network) *blixardv1.Network {
			return &blixardv1.Network{Type: n.Type, Ipv4Subnet: n.Ipv4Subnet, Ipv6Subnet: n.Ipv6Subnet, Mtu: n.Mtu, Labels: n.Labels}
		}
		if changes, err := changesOf(fixed(before), fixed(after)); err != nil || len(changes) > 0 {
			if err != nil {
				return err
			}
			return problem.New(problem.Conflict, "manifest.fixed", "of network %q only the rules can change, and %s differs", s.Name, changes[0].path).
				WithHint("write it as `blixard network show %s` shows it, or make another network", s.Name).WithField("%s", changes[0].path)
		}
		if before.Rules == nil {
			before.Rules = &blixardv1.NetworkRules{}
		}
		if after.Rules == nil {
			after.Rules = &blixardv1.NetworkRules{}
		}
	case !problem.Is(err, problem.NotFound):
		return err
	}
	s.changes, err = changesOf(before, after)
	return err
}

// sameProject refuses to move an object from one project to another.
func (s *step) sameProject(want, has interface{ GetProject() string }) error {
	if want.GetProject() == "" || projectOf(want) == projectOf(has) {
		return nil
	}
	kind := s.Kind
	if kind != manifest.KindVM {
		kind = strings.ToLower(kind)
	}
	return problem.New(problem.Conflict, "manifest.fixed", "the project of a %s can't change: %s %q is of project %q", kind, kind, s.Name, projectOf(has)).
		WithHint("write project: %s, or make another %s", projectOf(has), kind).WithField("project")
}

func (s *step) planGroup(ctx context.Context, c *client.Client) error {
	asked := proto.CloneOf(s.Group)
	asked.DryRun = true
	completed, err := c.Groups().CreateGroup(ctx, asked)
	if err != nil {
		return err
	}
	s.groupSpec = completed.GetGroup().GetSpec()
	resp, err := c.Groups().GetGroup(ctx, &blixardv1.GetGroupRequest{Name: s.Name})
	before := &blixardv1.Group{}
	switch {
	case err == nil:
		s.action, s.group, before = actionUpdate, resp.GetGroup(), resp.GetGroup()
		if err := s.sameProject(s.Group, before); err != nil {
			return err
		}
		// What `group rollout pause` did stays.
		s.groupSpec.Paused = s.groupSpec.GetPaused() || before.GetSpec().GetPaused()
	case !problem.Is(err, problem.NotFound):
		return err
	}
	s.changes, err = changesOf(&blixardv1.Group{Spec: before.GetSpec()}, &blixardv1.Group{Spec: s.groupSpec})
	return err
}

func (s *step) planSchedule(ctx context.Context, c *client.Client) error {
	asked := proto.CloneOf(s.Schedule)
	asked.DryRun = true
	completed, err := c.Schedules().CreateSchedule(ctx, asked)
	if err != nil {
		return err
	}
	s.scheduleSpec = completed.GetShown().GetSchedule().GetSpec()
	resp, err := c.Schedules().GetSchedule(ctx, &blixardv1.GetScheduleRequest{Name: s.Name})
	before := &blixardv1.Schedule{}
	switch {
	case err == nil:
		before = resp.GetShown().GetSchedule()
		s.action, s.schedule = actionUpdate, before
		if err := s.sameProject(s.Schedule, before); err != nil {
			return err
		}
	case !problem.Is(err, problem.NotFound):
		return err
	}
	s.changes, err = changesOf(&blixardv1.Schedule{Spec: before.GetSpec(), Labels: before.GetLabels()}, &blixardv1.Schedule{Spec: s.scheduleSpec, Labels: s.Schedule.GetLabels()})
	return err
}

// changesOf gives the fields that differ, in the names of the API.
func changesOf(before, after proto.Message) ([]fieldChange, error) {
	old, err := flatFields(before)
	if err != nil {
		return nil, err
	}
	next, err := flatFields(after)
	if err != nil {
		return nil, err
	}
	paths := slices.Collect(maps.Keys(old))
	for p := range next {
		if _, both := old[p]; !both {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	var changes []fieldChange
	for _, p := range paths {
		if old[p] != next[p] {
			changes = append(changes, fieldChange{path: p, before: old[p], after: next[p]})
		}
	}
	return changes, nil
}

// flatFields gives the JSON of each field that is set, by its path.
func flatFields(m proto.Message) (map[string]string, error) {
	raw, err := protojson.Marshal(m)
	if err != nil {
		return nil, err
	}
	var tree any
	if err := json.Unmarshal(raw, &tree); err != nil {
		return nil, err
	}
	flat := map[string]string{}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, one := range v {
				walk(strings.TrimPrefix(path+"."+k, "."), one)
			}
		case []any:
			for i, one := range v {
				walk(fmt.Sprintf("%s[%d]", path, i), one)
			}
		default:
			var text strings.Builder
			enc := json.NewEncoder(&text)
			enc.SetEscapeHTML(false)
			_ = enc.Encode(v)
			flat[path] = strings.TrimSpace(text.String())
		}
	}
	walk("", tree)
	return flat, nil
}
