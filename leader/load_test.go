package leader

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/replica"
	"github.com/blixard/blixard/state"
)

// TestLoadHasHysteresis: a node becomes busy when its load was high for some time without a
// break, and calm when it was low for as long.
func TestLoadHasHysteresis(t *testing.T) {
	for _, tc := range []struct {
		name string
		busy bool // at the beginning
		// loads by the second at which they are heard of, in steps of 5 s; a gap is a point.
		loads string
		want  bool
	}{
		{"nothing heard", false, "", false},
		{"nothing heard of a busy one", true, "", true},
		{"high for long", false, "80 80 80 80 80 80 80", true},
		{"high for too short a time", false, "99 99 99 99 99 99", false},
		{"once not so high", false, "99 99 99 79 99 99 99 99 99 99", false},
		{"once not known", false, "99 99 99 ? 99 99 99 99 99 99", false},
		{"a renewal is lost", false, "99 99 . 99 99 99 99", true},
		{"a lease is lost", false, "99 99 99 99 . . 99 99 99", false},
		{"between the bounds", false, "79 79 79 79 79 79 79 79 79", false},
		{"between the bounds and busy", true, "60 60 60 60 60 60 60 60 60", true},
		{"low for long", true, "59 59 59 0 0 59 59", false},
		{"low for too short a time", true, "0 0 0 0 0 0", true},
		{"once not so low", true, "0 0 0 60 0 0 0 0 0 0", true},
		{"not known for long", true, "? ? ? ? ? ? ?", false},
		{"not known at all", false, "? ? ? ? ? ? ?", false},
		{"high after low", false, "0 0 0 0 0 0 0 99 99", false},
		{"high, then low for a short time", false, "90 90 90 90 90 90 90 0 0 0", true},
		{"high, then low", false, "90 90 90 90 90 90 90 0 0 0 0 0 0 0", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCluster(t)
			c.node("a", 1000)
			if tc.busy {
				c.apply(&blixardv1.Command{Change: &blixardv1.Command_SetBusy{SetBusy: &blixardv1.SetBusyCommand{Nodes: []*blixardv1.NodeBusy{{NodeId: "node-a", Busy: true}}}}})
			}
			begin := time.Unix(1000, 0)
			table := Table{TTL: 10 * time.Second, Margin: time.Second, Steady: loadSteady}
			table.Begin(1, begin)
			for k, word := range strings.Fields(tc.loads) {
				if word != "." {
					table.Loaded("node-a", percentOf(t, word), begin.Add(time.Duration(k)*5*time.Second))
				}
				for _, cmd := range table.Busy(c.state.View(), true) {
					c.apply(cmd)
				}
			}
			if got := c.state.View().Node("a").GetBusy(); got != tc.want {
				t.Errorf("it is busy: %v", got)
			}
			if cmds := table.Busy(c.state.View(), true); len(cmds) != 0 {
				t.Errorf("told twice: %v", cmds)
			}
			// A new leader has heard of nothing, and changes nothing.
			table.Begin(2, begin.Add(time.Hour))
			if cmds := table.Busy(c.state.View(), true); len(cmds) != 0 {
				t.Errorf("a new leader tells %v", cmds)
			}
		})
	}
}

func percentOf(t *testing.T, word string) *uint32 {
	t.Helper()
	if word == "?" {
		return nil
	}
	var percent uint32
	if _, err := fmt.Sscan(word, &percent); err != nil {
		t.Fatal(err)
	}
	return &percent
}

// TestBusyIsTold: the load that is told is the newest, one command has a bounded number of
// nodes, none is busy where the load is not looked at, and older members are told nothing.
func TestBusyIsTold(t *testing.T) {
	c := newCluster(t)
	begin := time.Unix(1000, 0)
	table := Table{TTL: 10 * time.Second, Steady: loadSteady}
	table.Begin(1, begin)
	for k := range busyBatchMax + 1 {
		name := fmt.Sprintf("n%03d", k)
		c.node(name, 1000)
		for s := 0; s <= 30; s += 10 {
			table.Loaded("node-"+name, proto.Uint32(uint32(90+s/10)), begin.Add(time.Duration(s)*time.Second))
		}
	}
	tell := func(look bool) (told int) {
		t.Helper()
		cmds := table.Busy(c.state.View(), look)
		if len(cmds) > 1 {
			t.Fatalf("%d commands", len(cmds))
		}
		for _, cmd := range cmds {
			for _, one := range cmd.GetSetBusy().GetNodes() {
				told++
				if one.GetBusy() != look || look && one.GetLoadPercent() != 93 || !look && one.LoadPercent != nil {
					t.Fatalf("told is %v", one)
				}
			}
			c.apply(cmd)
		}
		return told
	}
	for _, want := range []int{busyBatchMax, 1, 0} {
		if got := tell(true); got != want {
			t.Errorf("%d nodes are told, not %d", got, want)
		}
	}
	for _, want := range []int{busyBatchMax, 1, 0} {
		if got := tell(false); got != want {
			t.Errorf("where the load is not looked at %d nodes are told, not %d", got, want)
		}
	}
	c.apply(&blixardv1.Command{Change: &blixardv1.Command_FormCluster{FormCluster: &blixardv1.FormClusterCommand{
		ClusterId: "x", CaCertificate: []byte("ca"), Member: &blixardv1.Member{NodeId: "node-n000", Name: "n000", RaftId: 1, Address: "a:1", FeatureLevel: busyLevel - 1},
	}}})
	if got := tell(true); got != 0 {
		t.Errorf("older members are told of %d nodes", got)
	}
}

// TestLeaderTellsOfBusyNodes: the leader's round proposes it, and VMs go elsewhere.
func TestLeaderTellsOfBusyNodes(t *testing.T) {
	rep, err := replica.Open(t.Context(), replica.Config{Dir: filepath.Join(t.TempDir(), "raft"), NodeID: "node-a", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := rep.Close(); err != nil {
			t.Error(err)
		}
	}()
	propose := func(cmd *blixardv1.Command) state.Result {
		t.Helper()
		res, err := rep.Propose(t.Context(), cmd)
		if err != nil || res.Problem != nil {
			t.Fatal(res.Problem, err)
		}
		return res
	}
	for name, memory := range map[string]uint64{"a": 1 << 16, "b": 1 << 12} {
		propose(&blixardv1.Command{Change: &blixardv1.Command_RegisterNode{RegisterNode: &blixardv1.RegisterNodeCommand{
			NodeId: "node-" + name, Name: name, Incarnation: 1, Fingerprint: &blixardv1.NodeFingerprint{
				Capacity: &blixardv1.Resources{Vcpus: 8, MemoryMib: memory}, Images: []string{"busybox"},
			},
		}}})
	}
	l := NewLeases(rep, 10*time.Second, time.Second)
	r := &runner{cfg: Config{Name: "a", Replica: rep, Leases: l, Load: true, Logger: slog.New(slog.DiscardHandler)}, core: NewCore(NewAllocationID, 50, 0), term: rep.LeadTerm()}
	r.list(rep.View())
	defer r.sub.Close()
	now := time.Now()
	l.begin(r.term, now)
	for before := loadSteady; before > 0; before -= 8 * time.Second {
		l.table.Loaded("node-a", proto.Uint32(busyPercent), now.Add(-before))
	}
	if _, err := l.Grant(t.Context(), "node-a", 1, 0, ""); err != nil {
		t.Fatal(err)
	}
	l.Loaded("node-a", proto.Uint32(97))
	if err := r.round(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if view := rep.View(); !view.Node("a").GetBusy() || view.Node("b").GetBusy() {
		t.Errorf("the nodes are %v", view.Nodes())
	}
	propose(&blixardv1.Command{Change: &blixardv1.Command_CreateVm{CreateVm: &blixardv1.CreateVMCommand{
		Id: "vm-x", Name: "x", Spec: &blixardv1.VMSpec{Image: "busybox", Vcpus: 1, MemoryMib: 64, Desired: blixardv1.DesiredState_run},
	}}})
	r.list(rep.View())
	if err := r.proposeAll(t.Context(), r.core.Decide(rep.View())); err != nil {
		t.Fatal(err)
	}
	if got := rep.View().VM("x").GetStatus().GetNode(); got != "b" {
		t.Errorf("the VM goes to %q", got)
	}
}
