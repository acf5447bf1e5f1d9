package server_test

import (
	"testing"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// TestNamesOfProjects: requests take every spelling of a name, and answers have the full one.
func TestNamesOfProjects(t *testing.T) {
	w := newWorld(t)
	w.register()
	ctx := t.Context()
	spec := &blixardv1.VMSpec{Image: "busybox", NoNetwork: true}
	create := func(project, name string) (string, string, error) {
		resp, err := w.client.VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{Project: project, Name: name, Spec: spec})
		return resp.GetVm().GetName(), resp.GetVm().GetProject(), err
	}
	for _, c := range []struct{ project, name, full, of string }{
		{"", "default/web", "web", ""}, {"shop", "web", "shop/web", "shop"}, {"", "lab/web", "lab/web", "lab"}, {"default", "db", "db", ""},
	} {
		if full, of, err := create(c.project, c.name); err != nil || full != c.full || of != c.of {
			t.Errorf("%q in project %q: %q of %q, %v", c.name, c.project, full, of, err)
		}
	}
	if full, of, err := create("shop", ""); err != nil || of != "shop" || full[:len("shop/busybox-")] != "shop/busybox-" {
		t.Errorf("a name that is chosen: %q of %q, %v", full, of, err)
	}
	if _, _, err := create("lab", "shop/web"); !problem.HasCode(err, "name.other_project") {
		t.Errorf("a name of another project: %v", err)
	}
	for _, name := range []string{"shop/", "/web", "shop/a/b", "Shop/web", "shop//web"} {
		if _, _, err := create("", name); !problem.HasCode(err, "name.invalid") {
			t.Errorf("%q: %v", name, err)
		}
	}
	if got, err := w.client.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: "default/web"}); err != nil || got.GetVm().GetName() != "web" {
		t.Errorf("default/web is %v, %v", got, err)
	}
	renamed, err := w.client.VMs().RenameVM(ctx, &blixardv1.RenameVMRequest{Name: "shop/web", NewName: "front"})
	if err != nil || renamed.GetVm().GetName() != "shop/front" {
		t.Errorf("renamed to %v, %v", renamed, err)
	}
	for _, c := range []struct{ name, to string }{{"shop/front", "lab/front"}, {"web", "shop/web"}, {"shop/front", "default/front"}} {
		if _, err := w.client.VMs().RenameVM(ctx, &blixardv1.RenameVMRequest{Name: c.name, NewName: c.to}); !problem.HasCode(err, "name.other_project") {
			t.Errorf("%s renamed to %s: %v", c.name, c.to, err)
		}
	}
	if events, err := w.client.Events().ListEvents(ctx, &blixardv1.ListEventsRequest{Object: "default/web"}); err != nil || len(events.GetEvents()) == 0 {
		t.Errorf("the events of default/web: %v, %v", events, err)
	}
}

// TestOldMembersSeeNoNamesOfProjects: while one is a member, what has such a name is refused,
// and all else goes on.
func TestOldMembersSeeNoNamesOfProjects(t *testing.T) {
	w := newWorld(t)
	w.register()
	ctx := t.Context()
	if _, err := w.replica.Propose(ctx, &blixardv1.Command{Actor: "test", Change: &blixardv1.Command_FormCluster{FormCluster: &blixardv1.FormClusterCommand{
		ClusterId: "cluster-x", CaCertificate: []byte("ca"), SealedCaKey: []byte("key"),
		Member: &blixardv1.Member{NodeId: "node-a", Name: "a", RaftId: 1, Address: "h:1", FeatureLevel: 15},
	}}}); err != nil {
		t.Fatal(err)
	}
	w.create("web")
	spec := &blixardv1.VMSpec{Image: "busybox", NoNetwork: true}
	_, create := w.client.VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{Name: "web", Project: "shop", Spec: spec})
	_, label := w.client.VMs().LabelVM(ctx, &blixardv1.LabelVMRequest{Name: "default/web"})
	_, group := w.client.Groups().CreateGroup(ctx, &blixardv1.CreateGroupRequest{Name: "shop/crew", Spec: &blixardv1.GroupSpec{Replicas: 1, Vm: spec}})
	_, task := w.client.Tasks().SubmitTask(ctx, &blixardv1.SubmitTaskRequest{Project: "shop", Spec: &blixardv1.TaskSpec{Vm: spec}})
	_, schedule := w.client.Schedules().CreateSchedule(ctx, &blixardv1.CreateScheduleRequest{Name: "shop/tick", Spec: &blixardv1.ScheduleSpec{Cron: "@daily", Task: &blixardv1.TaskSpec{Vm: spec}}})
	stream, err := w.client.VMs().LabelVMs(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&blixardv1.LabelVMsRequest{Sequence: 7, Change: &blixardv1.LabelVMRequest{Name: "default/web"}}); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil || answer.GetSequence() != 7 || answer.GetProblem().GetCode() != "cluster.old_member" {
		t.Errorf("labels of a stream: %v, %v", answer, err)
	}
	for what, err := range map[string]error{"a VM": create, "labels": label, "a group": group, "a task": task, "a schedule": schedule} {
		if !problem.HasCode(err, "cluster.old_member") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if v := w.replica.View(); len(v.VMs("", 0)) != 1 || len(v.Groups("", 0))+len(v.Tasks("", 0))+len(v.Schedules("", 0)) != 0 {
		t.Error("something was made")
	}
	if _, err := w.client.VMs().StopVM(ctx, &blixardv1.StopVMRequest{Name: "web"}); err != nil {
		t.Errorf("a VM of project default: %v", err)
	}
}
