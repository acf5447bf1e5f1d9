package scheduler

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/constraint"
	"github.com/blixard/blixard/state"
)

// hosts is the product's state with nodes and VMs, and a fleet that follows it.
type hosts struct {
	t     interface{ Fatalf(string, ...any) }
	state *state.State
	fleet *Fleet
	index uint64
}

func newHosts(t interface{ Fatalf(string, ...any) }) *hosts {
	return &hosts{t: t, state: state.New(state.DefaultLimits()), fleet: NewFleet(blixardv1.Strategy_spread)}
}

func (h *hosts) apply(cmd *blixardv1.Command) state.Result {
	h.index++
	cmd.Time = timestamppb.New(time.Unix(int64(h.index), 0))
	return h.state.Apply([]state.Entry{{Index: h.index, Command: cmd}})[0]
}

func (h *hosts) node(name string, memoryMiB uint64, labels string) {
	fp := &blixardv1.NodeFingerprint{
		Capacity: &blixardv1.Resources{Vcpus: 64, MemoryMib: memoryMiB, DiskBytes: 1 << 50}, Images: []string{"busybox"}, Kernels: []string{"own"},
		Labels: map[string]string{}, BlixardVersion: "0.2.1",
	}
	for _, l := range strings.Fields(labels) {
		k, v, _ := strings.Cut(l, "=")
		if k == "domain" {
			fp.FailureDomain = v
			continue
		}
		fp.Labels[k] = v
	}
	h.must(h.apply(&blixardv1.Command{Change: &blixardv1.Command_RegisterNode{RegisterNode: &blixardv1.RegisterNodeCommand{
		NodeId: "node-" + name, Name: name, Incarnation: 1, Fingerprint: fp,
	}}}))
}

func (h *hosts) must(r state.Result) {
	if r.Problem != nil {
		h.t.Fatalf("%v", r.Problem)
	}
}

// create declares a VM with labels as "app=web tier=front".
func (h *hosts) create(name, labels string, sched *blixardv1.Scheduling) {
	set := map[string]string{}
	for _, l := range strings.Fields(labels) {
		k, v, _ := strings.Cut(l, "=")
		set[k] = v
	}
	h.must(h.apply(&blixardv1.Command{Change: &blixardv1.Command_CreateVm{CreateVm: &blixardv1.CreateVMCommand{
		Id: "id-" + name, Name: name, Labels: set,
		Spec: &blixardv1.VMSpec{Image: "busybox", Vcpus: 1, MemoryMib: 256, DiskBytes: 1 << 30, Desired: blixardv1.DesiredState_run, Scheduling: sched},
	}}}))
}

// place follows the state, places a VM, and applies it; it gives the node or the reason.
func (h *hosts) place(name string) string {
	view := h.state.View()
	h.fleet.Follow(view)
	vm := view.VM(name)
	d := h.fleet.Place(view, vm)
	if d.Node == nil {
		return d.Reason + ": " + d.Message
	}
	h.must(h.apply(&blixardv1.Command{Change: &blixardv1.Command_Place{Place: &blixardv1.PlaceCommand{Placements: []*blixardv1.Placement{{
		VmId: vm.GetId(), AllocationId: "alloc-" + name, NodeId: d.Node.GetId(), VmModifyIndex: vm.GetModifyIndex(),
	}}}}}))
	return d.Node.GetName()
}

func (h *hosts) want(name, labels string, sched *blixardv1.Scheduling, where string) {
	h.create(name, labels, sched)
	if got := h.place(name); !strings.HasPrefix(got, where) {
		h.t.Fatalf("%s goes to %q, not %q", name, got, where)
	}
}

// only gives rules from their text.
func only(texts ...string) *blixardv1.Scheduling {
	s := &blixardv1.Scheduling{}
	for _, text := range texts {
		c, err := constraint.Parse(text)
		if err != nil {
			panic(err)
		}
		s.Constraints = append(s.Constraints, c)
	}
	return s
}

func prefer(weight int32, text string) *blixardv1.Scheduling {
	return &blixardv1.Scheduling{Preferences: []*blixardv1.Preference{{Constraint: only(text).Constraints[0], Weight: weight}}}
}

func near(weight uint32, value, over string) *blixardv1.Scheduling {
	return &blixardv1.Scheduling{Affinities: []*blixardv1.Affinity{{Key: "app", Value: value, Weight: weight, Over: over}}}
}

func apart(weight uint32, value, over string) *blixardv1.Scheduling {
	s := near(weight, value, over)
	s.Affinities[0].Apart = true
	return s
}

func TestConstraints(t *testing.T) {
	h := newHosts(t)
	h.node("a", 100_000, "zone=x disk=hdd domain=r1")
	h.node("b", 10_000, "zone=y disk=ssd gpu=1 domain=r2")
	h.node("c", 20_000, "zone=y disk=nvme")
	h.want("1", "", only("zone=y"), "c")
	h.want("2", "", only("zone!=x", "disk in ssd,hdd"), "b")
	h.want("3", "", only("gpu"), "b")
	h.want("4", "", only("!gpu", "zone=y"), "c")
	h.want("5", "", only("node.name=b"), "b")
	h.want("6", "", only("node.name in b,c,nope"), "c")
	h.want("7", "", only("node.name!=a"), "c")
	h.want("8", "", only("node.version>=0.2", "node.domain=r2"), "b")
	h.want("9", "", only("node.version<0.2"), "constraint: node a does not meet node.version<0.2: node.version is 0.2.1; node b")
	h.want("10", "", only("zone=z"), "constraint: node a does not meet zone=z: zone is x")
	h.want("11", "", only("node.name=nope"), "constraint: node a does not meet node.name=nope")
	h.want("12", "", only("node.domain not in r1,r2"), "c")
	h.want("13", "", only("rack=1"), "constraint: node a does not meet rack=1: it has no rack")
	h.want("14", "", nil, "a")
}

func TestPreferences(t *testing.T) {
	h := newHosts(t)
	h.node("a", 20_000, "zone=x")
	h.node("b", 10_000, "zone=y")
	h.want("1", "", prefer(60, "zone=y"), "b")
	h.want("2", "", prefer(0, "zone=y"), "a")
	h.want("3", "", prefer(80, "node.name=b"), "b")
	h.want("4", "", prefer(-80, "node.name=a"), "b")
	h.want("5", "", prefer(80, "zone=z"), "a")
}

func TestAffinities(t *testing.T) {
	h := newHosts(t)
	for k := range 6 {
		h.node(fmt.Sprint("n", k), 10_000, fmt.Sprintf("rack=r%d", k/2))
	}
	h.want("db", "app=db", only("node.name=n3"), "n3")
	h.want("with-db", "", near(0, "db", ""), "n3")
	h.want("in-the-rack", "", near(0, "db", "rack"), "n2")
	h.want("rather-there", "", near(100, "db", ""), "n3")
	h.want("not-there", "", near(0, "nobody", ""), "affinity: node n0 has no VM with app=nobody; ")
	h.want("first-of-its-kind", "app=kin", near(0, "kin", ""), "n0")
	h.want("second-of-its-kind", "app=kin", near(0, "kin", ""), "n0")
	for k, want := range []string{"n1", "n4", "n5", "n2", "n0", "n3"} {
		h.want(fmt.Sprint("apart-", k), "app=apart", apart(0, "apart", ""), want)
	}
	h.want("apart-6", "app=apart", apart(0, "apart", ""), "affinity: node n0 has a VM with app=apart already; ")
	racks := map[string]bool{}
	for k := range 3 {
		name := fmt.Sprint("racks-", k)
		h.create(name, "app=racks", apart(0, "racks", "rack"))
		racks[h.rack(h.place(name))] = true
	}
	if len(racks) != 3 {
		t.Errorf("three that are apart are in the racks %v", racks)
	}
	h.want("racks-3", "app=racks", apart(0, "racks", "rack"), "affinity: node n0, by its rack r0, has a VM with app=racks already; ")
	counts := map[string]int{}
	for k := range 9 {
		name := fmt.Sprint("spread-", k)
		h.create(name, "app=spread", apart(100, "spread", "rack"))
		counts[h.rack(h.place(name))]++
	}
	if counts["r0"] != 3 || counts["r1"] != 3 || counts["r2"] != 3 {
		t.Errorf("spread over racks as %v", counts)
	}
}

func (h *hosts) rack(node string) string {
	return constraint.Labels(h.state.View().Node(node))["rack"]
}

// Labels that people set win over those of the configuration.
func TestLabelsOfPeopleWin(t *testing.T) {
	h := newHosts(t)
	h.node("a", 10_000, "zone=x")
	h.node("b", 10_000, "zone=x")
	set := func(node string, labels map[string]string, drop ...string) state.Result {
		return h.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: &blixardv1.UpdateNodeCommand{Node: node, SetLabels: labels, DropLabels: drop}}})
	}
	h.want("1", "", only("zone=y"), "constraint")
	h.must(set("b", map[string]string{"zone": "y", "more": "1"}))
	if got := h.place("1"); got != "b" {
		t.Errorf("it goes to %s", got)
	}
	h.must(set("b", nil, "zone"))
	h.want("2", "", only("zone=y"), "constraint")
	h.want("3", "", only("more", "zone=x"), "b")
}

// A fleet that follows every change, and places VMs in between, decides as one that was
// just made; and the best node of all that are possible is chosen.
func TestFleetFollows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := newHosts(t)
		names := []string{"a", "b", "c", "d", "e"}
		apps := []string{"web", "db"}
		scheds := func() *blixardv1.Scheduling {
			s := &blixardv1.Scheduling{Strategy: blixardv1.Strategy_Enum(rapid.IntRange(0, 2).Draw(t, "strategy"))}
			for range rapid.IntRange(0, 1).Draw(t, "constraints") {
				s.Constraints = append(s.Constraints, only(rapid.SampledFrom([]string{"zone=1", "zone!=1", "zone in 1,2", "!zone", "node.name!=a", "node.name in a,b"}).Draw(t, "constraint")).Constraints...)
			}
			for range rapid.IntRange(0, 1).Draw(t, "tolerations") {
				s.Tolerations = append(s.Tolerations, &blixardv1.Toleration{Key: "t", Effect: blixardv1.TaintEffect_Enum(rapid.IntRange(0, 2).Draw(t, "tolerated"))})
			}
			for range rapid.IntRange(0, 1).Draw(t, "preferences") {
				s.Preferences = append(s.Preferences, prefer(rapid.Int32Range(-100, 100).Draw(t, "weight"), rapid.SampledFrom([]string{"zone=1", "zone=2", "node.name=b"}).Draw(t, "preference")).Preferences...)
			}
			for range rapid.IntRange(0, 2).Draw(t, "affinities") {
				s.Affinities = append(s.Affinities, &blixardv1.Affinity{
					Key: "app", Value: rapid.SampledFrom(apps).Draw(t, "of"), Apart: rapid.Bool().Draw(t, "apart"),
					Weight: rapid.SampledFrom([]uint32{0, 10, 100}).Draw(t, "affinity"), Over: rapid.SampledFrom([]string{"", "zone"}).Draw(t, "over"),
				})
			}
			for range rapid.IntRange(0, 1).Draw(t, "spreads") {
				s.Spreads = append(s.Spreads, &blixardv1.Spread{
					Key: "app", Value: "web", Over: "zone", Weight: rapid.SampledFrom([]uint32{0, 50}).Draw(t, "spread"),
					Shares: []*blixardv1.SpreadShare{{Value: "1", Percent: rapid.Uint32Range(0, 100).Draw(t, "share")}},
				})
			}
			return s
		}
		n := 0
		t.Repeat(map[string]func(*rapid.T){
			"register": func(*rapid.T) {
				zone := rapid.SampledFrom([]string{"", "zone=1", "zone=2"}).Draw(t, "zone")
				h.node(rapid.SampledFrom(names).Draw(t, "node"), rapid.Uint64Range(400, 3000).Draw(t, "memory"), zone)
			},
			"state": func(*rapid.T) {
				h.apply(&blixardv1.Command{Change: &blixardv1.Command_SetNodeState{SetNodeState: &blixardv1.SetNodeStateCommand{
					NodeId: "node-" + rapid.SampledFrom(names).Draw(t, "node"), Incarnation: 1,
					State: rapid.SampledFrom([]blixardv1.NodeState_Enum{blixardv1.NodeState_ready, blixardv1.NodeState_down}).Draw(t, "state"),
				}}})
			},
			"update": func(*rapid.T) {
				c := &blixardv1.UpdateNodeCommand{Node: rapid.SampledFrom(names).Draw(t, "node"), Cordoned: proto.Bool(rapid.Bool().Draw(t, "cordoned"))}
				if rapid.Bool().Draw(t, "label") {
					c.SetLabels = map[string]string{"zone": rapid.SampledFrom([]string{"1", "2"}).Draw(t, "zone")}
				}
				switch rapid.IntRange(0, 3).Draw(t, "taint") {
				case 0:
					c.DropTaints = []string{"t"}
				case 1:
					c.SetTaints = []*blixardv1.Taint{{Key: "t", Effect: blixardv1.TaintEffect_Enum(rapid.IntRange(1, 2).Draw(t, "effect"))}}
				}
				h.apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: c}})
			},
			"load": func(*rapid.T) {
				h.apply(&blixardv1.Command{Change: &blixardv1.Command_SetBusy{SetBusy: &blixardv1.SetBusyCommand{Nodes: []*blixardv1.NodeBusy{{
					NodeId: "node-" + rapid.SampledFrom(names).Draw(t, "node"), Busy: rapid.Bool().Draw(t, "busy"),
				}}}}})
			},
			"place": func(*rapid.T) {
				n++
				h.create(fmt.Sprint("vm-", n), "app="+rapid.SampledFrom(apps).Draw(t, "app"), scheds())
				h.place(fmt.Sprint("vm-", n))
			},
			"label": func(*rapid.T) {
				h.apply(&blixardv1.Command{Change: &blixardv1.Command_LabelVm{LabelVm: &blixardv1.LabelVMCommand{
					Name: fmt.Sprint("vm-", rapid.IntRange(1, 9).Draw(t, "vm")), Labels: map[string]string{"app": rapid.SampledFrom(apps).Draw(t, "app")},
				}}})
			},
			"try": func(*rapid.T) { // what is placed and not applied is forgotten
				view := h.state.View()
				h.fleet.Follow(view)
				h.fleet.Place(view, &blixardv1.VM{Id: "id-tried", Labels: map[string]string{"app": "web"}, Spec: &blixardv1.VMSpec{Image: "busybox", Vcpus: 1, MemoryMib: 300, Scheduling: scheds()}})
			},
			"delete": func(*rapid.T) {
				name := fmt.Sprint("vm-", rapid.IntRange(1, 9).Draw(t, "vm"))
				vm := h.state.View().VM(name)
				if vm == nil {
					return
				}
				h.apply(&blixardv1.Command{Change: &blixardv1.Command_DeleteVm{DeleteVm: &blixardv1.DeleteVMCommand{Name: name}}})
				if a := h.state.View().Allocation(vm.GetStatus().GetAllocationId()); a != nil {
					h.apply(&blixardv1.Command{Change: &blixardv1.Command_Report{Report: &blixardv1.ReportCommand{NodeId: a.GetNodeId(), Reports: []*blixardv1.AllocationReport{{
						AllocationId: a.GetId(), Epoch: a.GetEpoch(), Status: &blixardv1.VMStatus{State: blixardv1.AllocationState_stopped}, Removed: true,
					}}}}})
				}
			},
			"": func(*rapid.T) {
				view := h.state.View()
				h.fleet.Follow(view)
				fresh := NewFleet(blixardv1.Strategy_spread)
				fresh.Follow(view)
				probe := &blixardv1.VM{Id: "id-probe", Labels: map[string]string{"app": "web"}, Spec: &blixardv1.VMSpec{Image: "busybox", Vcpus: 1, MemoryMib: 256, Scheduling: scheds()}}
				if rapid.Bool().Draw(t, "known") {
					if vm := view.VM(fmt.Sprint("vm-", rapid.IntRange(1, 9).Draw(t, "vm"))); vm != nil {
						probe = vm
					}
				}
				d, verdicts := h.fleet.Explain(view, probe)
				freshD, freshVerdicts := fresh.Explain(view, probe)
				if diff := cmp.Diff(freshVerdicts, verdicts, protocmp.Transform()); diff != "" || d.Reason != freshD.Reason || d.Node.GetName() != freshD.Node.GetName() {
					t.Fatalf("a fleet that follows decides %v, a fresh one %v: %s", d, freshD, diff)
				}
				best := ""
				if len(verdicts) > 0 && verdicts[0].GetPossible() {
					best = verdicts[0].GetNode()
				}
				if d.Node.GetName() != best || (best == "") != (d.Reason != "") {
					t.Fatalf("%q is chosen (%s), and %q has the most points", d.Node.GetName(), d.Reason, best)
				}
			},
		})
	})
}
