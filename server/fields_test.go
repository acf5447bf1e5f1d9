package server_test

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// What is refused because of a field names it by its path in the request, whoever found it:
// the rules of the API, the server, or the state.
func TestRefusalsNameFields(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.register()
	w.create("taken")
	c := w.client
	if _, err := c.Volumes().CreateVolume(ctx, &blixardv1.CreateVolumeRequest{Name: "data"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Networks().CreateNetwork(ctx, &blixardv1.CreateNetworkRequest{Name: "back", Ipv4Subnet: "10.99.0.0/16"}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Quotas().SetQuota(ctx, &blixardv1.SetQuotaRequest{Project: "shop", Limits: &blixardv1.QuotaLimits{Vcpus: new(uint64(1))}}); err != nil {
		t.Fatal(err)
	}
	spec := func(change func(*blixardv1.VMSpec)) *blixardv1.VMSpec {
		s := &blixardv1.VMSpec{Image: "busybox"}
		change(s)
		return s
	}
	vm := func(change func(*blixardv1.VMSpec)) error {
		return second(c.VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{Name: "a", Spec: spec(change)}))
	}
	scheduled := func(s *blixardv1.Scheduling) error {
		return second(c.VMs().ExplainVM(ctx, &blixardv1.ExplainVMRequest{Spec: &blixardv1.VMSpec{Image: "busybox", Scheduling: s}}))
	}
	group := func(replicas uint32, change func(*blixardv1.GroupSpec)) error {
		s := &blixardv1.GroupSpec{Replicas: replicas, Vm: &blixardv1.VMSpec{Image: "busybox"}}
		change(s)
		return second(c.Groups().CreateGroup(ctx, &blixardv1.CreateGroupRequest{Name: "g", Spec: s}))
	}
	task := func(change func(*blixardv1.TaskSpec)) error {
		s := &blixardv1.TaskSpec{Vm: &blixardv1.VMSpec{Image: "busybox"}}
		change(s)
		return second(c.Tasks().SubmitTask(ctx, &blixardv1.SubmitTaskRequest{Name: "t", Spec: s}))
	}
	schedule := func(change func(*blixardv1.ScheduleSpec)) error {
		s := &blixardv1.ScheduleSpec{Cron: "@daily", Task: &blixardv1.TaskSpec{Vm: &blixardv1.VMSpec{Image: "busybox"}}}
		change(s)
		return second(c.Schedules().CreateSchedule(ctx, &blixardv1.CreateScheduleRequest{Name: "s", Spec: s}))
	}
	network := func(req *blixardv1.CreateNetworkRequest) error {
		if req.Name == "" {
			req.Name = "n"
		}
		return second(c.Networks().CreateNetwork(ctx, req))
	}
	equal := func(key, value string) *blixardv1.Constraint {
		return &blixardv1.Constraint{Key: key, Operator: blixardv1.Operator_equal, Values: []string{value}}
	}
	for _, tc := range []struct {
		code string
		err  error
		want []string
	}{
		{"request.invalid", vm(func(s *blixardv1.VMSpec) {
			s.Vcpus, s.DiskBytes, s.Ports = 65, 1, []*blixardv1.PublishedPort{{HostPort: 1, GuestPort: 1}, {HostPort: 99999, GuestPort: 1}}
		}), []string{"spec.disk_bytes", "spec.ports[1].host_port", "spec.vcpus"}},
		{"vm.name_taken", second(c.VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{Name: "taken", Spec: &blixardv1.VMSpec{Image: "busybox"}})), []string{"name"}},
		{"name.other_project", second(c.VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{Name: "a/b", Project: "c", Spec: &blixardv1.VMSpec{Image: "busybox"}})), []string{"name"}},
		{"quota.exceeded", second(c.VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{Name: "shop/b", Spec: &blixardv1.VMSpec{Image: "busybox", Vcpus: 2}})), []string{"spec.vcpus"}},
		{"image.name", vm(func(s *blixardv1.VMSpec) { s.Image = "NO//image" }), []string{"spec.image"}},
		{"image.unknown", vm(func(s *blixardv1.VMSpec) { s.Image = "busbox" }), []string{"spec.image"}},
		{"kernel.unknown", vm(func(s *blixardv1.VMSpec) { s.Kernel = "nope" }), []string{"spec.kernel"}},
		{"vm.too_large", vm(func(s *blixardv1.VMSpec) { s.MemoryMib = 100000 }), []string{"spec.memory_mib"}},
		{"network.none_and_some", vm(func(s *blixardv1.VMSpec) {
			s.NoNetwork, s.Networks = true, []*blixardv1.NetworkAttachment{{Network: "back"}}
		}), []string{"spec.networks"}},
		{"network.not_found", vm(func(s *blixardv1.VMSpec) {
			s.Networks = []*blixardv1.NetworkAttachment{{Network: "back"}, {Network: "nope"}}
		}), []string{"spec.networks[1].network"}},
		{"network.twice", vm(func(s *blixardv1.VMSpec) {
			s.Networks = []*blixardv1.NetworkAttachment{{Network: "back"}, {Network: "back"}}
		}), []string{"spec.networks[1]"}},
		{"network.address", vm(func(s *blixardv1.VMSpec) {
			s.Networks = []*blixardv1.NetworkAttachment{{Network: "back", Ipv4: "10.98.0.2"}}
		}), []string{"spec.networks[0].ipv4"}},
		{"volume.not_found", vm(func(s *blixardv1.VMSpec) {
			s.Volumes = []*blixardv1.VolumeAttachment{{Volume: "nope", Path: "/x"}}
		}), []string{"spec.volumes[0].volume"}},
		{"volume.twice", vm(func(s *blixardv1.VMSpec) {
			s.Volumes = []*blixardv1.VolumeAttachment{{Volume: "data", Path: "/x"}, {Volume: "data", Path: "/y"}}
		}), []string{"spec.volumes[1]"}},
		{"secret.not_found", vm(func(s *blixardv1.VMSpec) { s.Secrets = []*blixardv1.SecretAttachment{{Secret: "nope"}} }), []string{"spec.secrets[0].secret"}},
		{"port.no_network", vm(func(s *blixardv1.VMSpec) { s.Ports = []*blixardv1.PublishedPort{{HostPort: 1, GuestPort: 1}} }), []string{"spec.ports"}},
		{"port.twice", vm(func(s *blixardv1.VMSpec) {
			s.Networks = []*blixardv1.NetworkAttachment{{Network: "back"}}
			s.Ports = []*blixardv1.PublishedPort{{HostPort: 1, GuestPort: 1}, {HostPort: 1, GuestPort: 2}}
		}), []string{"spec.ports[1]"}},
		{"constraint.fact", scheduled(&blixardv1.Scheduling{Preferences: []*blixardv1.Preference{{Constraint: equal("node.nope", "a")}}}), []string{"spec.scheduling.preferences[0].constraint.key"}},
		{"constraint.values", scheduled(&blixardv1.Scheduling{Constraints: []*blixardv1.Constraint{{Key: "a", Operator: blixardv1.Operator_equal}}}), []string{"spec.scheduling.constraints[0].values"}},
		{"constraint.contradiction", scheduled(&blixardv1.Scheduling{Constraints: []*blixardv1.Constraint{equal("a", "x"), equal("b", "x"), equal("a", "y")}}), []string{"spec.scheduling.constraints[2]"}},
		{"constraint.fact", scheduled(&blixardv1.Scheduling{Affinities: []*blixardv1.Affinity{{Key: "a", Over: "node.nope"}}}), []string{"spec.scheduling.affinities[0].over"}},
		{"spread.sum", scheduled(&blixardv1.Scheduling{Spreads: []*blixardv1.Spread{{Key: "a", Over: "zone", Shares: []*blixardv1.SpreadShare{{Value: "x", Percent: 60}, {Value: "y", Percent: 60}}}}}), []string{"spec.scheduling.spreads[0].shares"}},
		{"kernel.unknown", second(c.Nodes().Simulate(ctx, &blixardv1.SimulateRequest{Vms: []*blixardv1.CreateVMRequest{
			{Name: "a", Spec: &blixardv1.VMSpec{Image: "busybox"}}, {Name: "b", Spec: &blixardv1.VMSpec{Image: "busybox", Kernel: "nope"}},
		}})), []string{"vms[1].spec.kernel"}},
		{"node.not_found", second(c.Volumes().CreateVolume(ctx, &blixardv1.CreateVolumeRequest{Name: "v", Node: "nope"})), []string{"node"}},
		{"placement.no_room", second(c.Volumes().CreateVolume(ctx, &blixardv1.CreateVolumeRequest{Name: "v", Node: "a", SizeBytes: 2 << 40})), []string{"size_bytes"}},
		{"volume.name_taken", second(c.Volumes().CreateVolume(ctx, &blixardv1.CreateVolumeRequest{Name: "data"})), []string{"name"}},
		{"network.user_subnet", network(&blixardv1.CreateNetworkRequest{Type: blixardv1.NetworkType_user, Ipv6Subnet: "fd12:3456:789a:1::/64"}), []string{"ipv6_subnet"}},
		{"network.subnet", network(&blixardv1.CreateNetworkRequest{Ipv4Subnet: "127.1.0.0/16"}), []string{"ipv4_subnet"}},
		{"network.subnet_overlaps", network(&blixardv1.CreateNetworkRequest{Ipv4Subnet: "10.99.1.0/24"}), []string{"ipv4_subnet"}},
		{"network.name_taken", network(&blixardv1.CreateNetworkRequest{Name: "back"}), []string{"name"}},
		{"group.of_a_vm", group(1, func(s *blixardv1.GroupSpec) { s.Vm.Stdin = true }), []string{"spec.vm.stdin"}},
		{"group.for_one", group(2, func(s *blixardv1.GroupSpec) {
			s.Vm.Volumes = []*blixardv1.VolumeAttachment{{Volume: "more", Path: "/x", ReadOnly: true}, {Volume: "data", Path: "/y"}}
		}), []string{"spec.vm.volumes[1]"}},
		{"group.all_canaries", group(1, func(s *blixardv1.GroupSpec) { s.Update = &blixardv1.UpdateRules{Canary: 1} }), []string{"spec.update.canary"}},
		{"group.no_way", group(1, func(s *blixardv1.GroupSpec) {
			s.Update = &blixardv1.UpdateRules{MaxSurge: new(uint32(0)), MaxUnavailable: new(uint32(0))}
		}), []string{"spec.update.max_unavailable"}},
		{"group.never_healthy", group(1, func(s *blixardv1.GroupSpec) {
			s.Update = &blixardv1.UpdateRules{MinHealthy: durationpb.New(time.Minute), ProgressDeadline: durationpb.New(time.Minute)}
		}), []string{"spec.update.progress_deadline"}},
		{"image.unknown", group(1, func(s *blixardv1.GroupSpec) { s.Vm.Image = "busbox" }), []string{"spec.vm.image"}},
		{"task.ports", task(func(s *blixardv1.TaskSpec) { s.Vm.Ports = []*blixardv1.PublishedPort{{HostPort: 1, GuestPort: 1}} }), []string{"spec.vm.ports"}},
		{"task.of_a_vm", task(func(s *blixardv1.TaskSpec) { s.Vm.Paused = true }), []string{"spec.vm.paused"}},
		{"task.after_unknown", task(func(s *blixardv1.TaskSpec) { s.After = []string{"nope"} }), []string{"spec.after[0]"}},
		{"cron.invalid", schedule(func(s *blixardv1.ScheduleSpec) { s.Cron = "* * *" }), []string{"spec.cron"}},
		{"time_zone.unknown", schedule(func(s *blixardv1.ScheduleSpec) { s.TimeZone = "Nope/Nope" }), []string{"spec.time_zone"}},
		{"image.unknown", schedule(func(s *blixardv1.ScheduleSpec) { s.Task.Vm.Image = "busbox" }), []string{"spec.task.vm.image"}},
		// What is about no field names none.
		{"vm.not_found", second(c.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: "nope"})), nil},
	} {
		p := problem.From(tc.err)
		if p == nil || p.Code != tc.code {
			t.Errorf("%s: %+v", tc.code, p)
			continue
		}
		var got []string
		for _, v := range p.Violations {
			got = append(got, v.Field)
			if v.Message == "" || v.Message != p.Message && len(tc.want) == 1 {
				t.Errorf("%s: %s says %q", tc.code, v.Field, v.Message)
			}
		}
		if slices.Sort(got); !slices.Equal(got, tc.want) {
			t.Errorf("%s names %v, want %v", tc.code, got, tc.want)
		}
	}
}
