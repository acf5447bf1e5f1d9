package state

import (
	"fmt"
	"maps"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// What people say of a node is kept beside what it says itself, and what can't be is
// refused and changes nothing.
func TestUpdateNode(t *testing.T) {
	s, index := New(DefaultLimits()), uint64(0)
	apply := func(cmd *blixardv1.Command) Result {
		index++
		cmd.Time = timestamppb.New(time.Unix(int64(index), 0))
		return s.Apply([]Entry{{Index: index, Command: cmd}})[0]
	}
	register := func(labels map[string]string) Result {
		return apply(&blixardv1.Command{Change: &blixardv1.Command_RegisterNode{RegisterNode: &blixardv1.RegisterNodeCommand{
			NodeId: "node-a", Name: "a", Incarnation: index + 1,
			Fingerprint: &blixardv1.NodeFingerprint{Capacity: &blixardv1.Resources{Vcpus: 1, MemoryMib: 1024}, Labels: labels},
		}}})
	}
	if r := register(map[string]string{"disk": "hdd"}); r.Problem != nil {
		t.Fatal(r.Problem)
	}
	many := map[string]string{}
	for k := range nodeLabelsMax {
		many[fmt.Sprint("k", k)] = ""
	}
	for _, tc := range []struct {
		name     string
		change   *blixardv1.UpdateNodeCommand
		code     string
		labels   map[string]string
		cordoned bool
		event    string
	}{
		{name: "labels", change: &blixardv1.UpdateNodeCommand{Node: "a", SetLabels: map[string]string{"zone": "x", "gpu": ""}}, labels: map[string]string{"zone": "x", "gpu": ""}, event: "node.labeled"},
		{name: "over one of its own", change: &blixardv1.UpdateNodeCommand{Node: "node-a", SetLabels: map[string]string{"disk": "ssd"}, DropLabels: []string{"gpu"}}, labels: map[string]string{"zone": "x", "disk": "ssd"}, event: "node.labeled"},
		{name: "nothing", change: &blixardv1.UpdateNodeCommand{Node: "a", SetLabels: map[string]string{"zone": "x"}}, labels: map[string]string{"zone": "x", "disk": "ssd"}},
		{name: "cordon", change: &blixardv1.UpdateNodeCommand{Node: "a", Cordoned: proto.Bool(true)}, labels: map[string]string{"zone": "x", "disk": "ssd"}, cordoned: true, event: "node.cordoned"},
		{name: "cordoned already", change: &blixardv1.UpdateNodeCommand{Node: "a", Cordoned: proto.Bool(true)}, labels: map[string]string{"zone": "x", "disk": "ssd"}, cordoned: true},
		{name: "unknown node", change: &blixardv1.UpdateNodeCommand{Node: "b", Cordoned: proto.Bool(true)}, code: "node.not_found"},
		{name: "reserved", change: &blixardv1.UpdateNodeCommand{Node: "a", SetLabels: map[string]string{"node.name": "b", "other": "1"}}, code: "label.reserved"},
		{name: "no such label", change: &blixardv1.UpdateNodeCommand{Node: "a", SetLabels: map[string]string{"other": "1"}, DropLabels: []string{"none"}}, code: "label.not_found"},
		{name: "too many", change: &blixardv1.UpdateNodeCommand{Node: "a", SetLabels: many}, code: "label.too_many"},
		{name: "uncordon", change: &blixardv1.UpdateNodeCommand{Node: "a", Cordoned: proto.Bool(false), DropLabels: []string{"disk"}}, labels: map[string]string{"zone": "x"}, event: "node.uncordoned"},
		{name: "of its configuration", change: &blixardv1.UpdateNodeCommand{Node: "a", DropLabels: []string{"disk"}}, code: "label.configured"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before, events := s.View().Node("a"), len(s.View().Events(nil, 0))
			r := apply(&blixardv1.Command{Change: &blixardv1.Command_UpdateNode{UpdateNode: tc.change}})
			after := s.View().Node("a")
			if tc.code != "" {
				if !problem.HasCode(problemOf(r), tc.code) || after != before || len(s.View().Events(nil, 0)) != events {
					t.Fatalf("%v; the node is %v", r.Problem, after)
				}
				return
			}
			if r.Problem != nil || !maps.Equal(after.GetLabels(), tc.labels) || after.GetCordoned() != tc.cordoned || r.Node != after {
				t.Fatalf("%v; the node is %v", r.Problem, after)
			}
			got := ""
			if all := s.View().Events(nil, 0); len(all) > events {
				got = all[len(all)-1].GetKind()
			}
			if got != tc.event {
				t.Errorf("the event is %q", got)
			}
		})
	}
	// A new start of its agent leaves what people said.
	if r := register(nil); r.Problem != nil || !maps.Equal(r.Node.GetLabels(), map[string]string{"zone": "x"}) {
		t.Errorf("%v, %v", r.Node, r.Problem)
	}
}

// TestBusyNodes: events tell the load that made a node busy or calm, and older members are
// not told of either.
func TestBusyNodes(t *testing.T) {
	st := newStory()
	st.must(t, registerN1)
	for _, tc := range []struct{ change, kind, message string }{
		{`busy: true load_percent: 93`, "node.busy", "its load is 93 %: VMs are placed elsewhere where they can be"},
		{`busy: false load_percent: 12`, "node.calm", "its load is 12 %: VMs are placed on it as on others"},
		{`busy: true load_percent: 100`, "node.busy", "its load is 100 %: VMs are placed elsewhere where they can be"},
		{`busy: false`, "node.calm", "its load is not looked at: VMs are placed on it as on others"},
	} {
		cmd := command(t, `set_busy {nodes {node_id: "n1" `+tc.change+`}}`)
		if got := Level(cmd); got != 18 {
			t.Errorf("it is of level %d", got)
		}
		st.do(cmd)
		if e := st.s.View().Events(nil, 1)[0]; e.GetKind() != tc.kind || e.GetMessage() != tc.message || e.GetObjectName() != "one" || e.GetNode() != "one" {
			t.Errorf("%s: the event is %v", tc.change, e)
		}
	}
}
