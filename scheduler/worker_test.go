package scheduler

import (
	"testing"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// TestWorkers: tasks go to nodes that take them, and no more to each than it takes; VMs
// that are no tasks go anywhere.
func TestWorkers(t *testing.T) {
	none, two, any := node("a", 100_000, 0), node("b", 90_000, 0), node("c", 1000, 0)
	none.Fingerprint.RefusesTasks, two.Fingerprint.TasksMax = true, 2
	there := task("there")
	there.Status = &blixardv1.VMStatus{AllocationId: "al", Node: "b"}
	v := view{nodes: []*blixardv1.Node{none, two, any}, vms: []*blixardv1.VM{there}}
	f := NewFleet(0)
	f.Follow(v)
	for i, want := range []string{"b", "c", "c", ""} {
		got := f.Place(v, task(string(rune('k'+i))))
		if got.Node.GetName() != want {
			t.Fatalf("task %d is placed on %q, want %q: %s", i, got.Node.GetName(), want, got.Message)
		}
		if want == "" && got.Message != "node a takes no tasks; node b runs 2 tasks, and takes no more than 2; node c has too little memory: 200 MiB free, 400 MiB needed (guest and hypervisor)" {
			t.Error(got.Message)
		}
	}
	if vm := task("vm"); true {
		vm.Task = ""
		if got := f.Place(v, vm); got.Node.GetName() != "a" {
			t.Errorf("a VM is placed on %s", got.Node.GetName())
		}
	}
	// What was placed since is forgotten, and what ended makes room.
	f.Follow(v)
	if got := f.Place(v, task("x")); got.Node.GetName() != "b" {
		t.Errorf("a task is placed on %q", got.Node.GetName())
	}
	f.Follow(v)
	f.putVM(there, true)
	for range 2 {
		if got := f.Place(v, task("y")); got.Node.GetName() != "b" {
			t.Errorf("a task is placed on %q", got.Node.GetName())
		}
	}
	if got := f.Place(v, task("z")); got.Node.GetName() != "c" {
		t.Errorf("a third task is placed on %q", got.Node.GetName())
	}
}

func task(name string) *blixardv1.VM {
	return &blixardv1.VM{Id: "id-" + name, Name: name, Task: "task-" + name, Spec: &blixardv1.VMSpec{Image: "busybox", MemoryMib: 320}}
}
