package state

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"github.com/blixard/blixard/internal/problem"
)

// A drain goes on as the leader says while it is the same one, and nothing that stays goes.
func TestAdvanceDrain(t *testing.T) {
	for _, tc := range []struct {
		name, before, command string
		code                  string // of the command
		refused               string // of an allocation
	}{
		{name: "moves", command: `state: moving left {seconds: 50} allocation_ids: "al-low"`},
		{name: "blocked", command: `state: blocked message: "no room"`},
		{name: "expires", command: `state: moving expired: true left {} allocation_ids: "al-low" allocation_ids: "al-high"`},
		{name: "stays", command: `state: moving allocation_ids: "al-kept" allocation_ids: "al-low"`, refused: "drain.stays"},
		{name: "gone meanwhile", before: `delete_vm {name: "low"}`, command: `state: moving allocation_ids: "al-low"`},
		{name: "not done", command: `state: done`, code: "drain.not_done"},
		{name: "time that grows", command: `state: moving left {seconds: 61}`, code: "drain.left"},
		{name: "no state", command: `allocation_ids: "al-low"`, code: "drain.state"},
		{name: "ended meanwhile", before: `drain_node {node: "n1"}`, command: `state: moving`, code: "drain.other"},
		{name: "begun again meanwhile", before: `drain_node {node: "n1" drain: true gradual: true}`, command: `state: moving`, code: "drain.other"},
		{name: "all at once meanwhile", before: `drain_node {node: "n1" drain: true}`, command: `state: moving`, code: "drain.other"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			st := crowded(t)
			begun := st.must(t, `drain_node {node: "n1" drain: true gradual: true deadline {seconds: 60}}`).Node.GetDrain().GetBegunIndex()
			if tc.before != "" {
				st.must(t, tc.before)
			}
			before := content(st.s.View())
			r := st.do(command(t, fmt.Sprintf(`advance_drain {node_id: "n1" begun_index: %d %s}`, begun, tc.command)))
			if tc.code != "" {
				if !problem.HasCode(problemOf(r), tc.code) || content(st.s.View()) != before {
					t.Fatalf("%v", r.Problem)
				}
				return
			}
			if r.Problem != nil || (tc.refused == "") != (len(r.Refused) == 0) || tc.refused != "" && r.Refused[0].Problem.Code != tc.refused {
				t.Fatal(r.Problem, r.Refused)
			}
		})
	}
}

func TestDrainNodeDeadline(t *testing.T) {
	st := crowded(t)
	for _, c := range []string{
		`drain_node {node: "n1" drain: true deadline {seconds: 60}}`,
		`drain_node {node: "n1" gradual: true deadline {seconds: 60}}`,
		`drain_node {node: "n1" drain: true gradual: true deadline {seconds: 0}}`,
	} {
		if r := st.do(command(t, c)); !problem.HasCode(problemOf(r), "drain.deadline") {
			t.Errorf("%s: %v", c, r.Problem)
		}
	}
	first := st.must(t, `drain_node {node: "n1" drain: true gradual: true deadline {seconds: 60}}`)
	again := st.must(t, `drain_node {node: "n1" drain: true gradual: true deadline {seconds: 60}}`)
	if again.Node.GetDrain().GetBegunIndex() != first.Index {
		t.Error("the same drain has begun twice")
	}
	other := st.must(t, `drain_node {node: "n1" drain: true gradual: true deadline {seconds: 30}}`)
	if d := other.Node.GetDrain(); d.GetBegunIndex() != other.Index || d.GetLeft().AsDuration() != 30*time.Second {
		t.Errorf("another deadline gives %v", d)
	}
}

// Ratios change what nodes have, those that come later too, and never below what is given.
func TestSettings(t *testing.T) {
	st := newStory()
	for _, c := range []string{registerN1, createA, placeA} {
		st.must(t, c)
	}
	whole := st.s.View().Node("n1").GetAllocatable()
	has := st.s.View().Node("n1").GetFingerprint().GetCapacity()
	r := st.must(t, `set_settings {cpu_percent: 150 memory_percent: 120 disk_percent: 200}`)
	if n := st.s.View().Node("n1").GetAllocatable(); n.GetVcpus() != has.GetVcpus()*3/2 || n.GetMemoryMib() != has.GetMemoryMib()*6/5 || n.GetDiskBytes() != 2*has.GetDiskBytes() {
		t.Errorf("node n1 has %v of %v", n, has)
	}
	st.must(t, `register_node {node_id: "n9" name: "n9" incarnation: 1 fingerprint {capacity {vcpus: 3 memory_mib: 7 disk_bytes: 0}}}`)
	if n := st.s.View().Node("n9").GetAllocatable(); n.GetVcpus() != 4 || n.GetMemoryMib() != 8 || n.GetDiskBytes() != 0 {
		t.Errorf("node n9 has %v", n)
	}
	if again := st.must(t, `set_settings {cpu_percent: 150}`); again.Settings.GetModifyIndex() != r.Index {
		t.Error("what is set already is set again")
	}
	for c, code := range map[string]string{
		`set_settings {cpu_percent: 9}`:                      "settings.range",
		`set_settings {memory_percent: 401}`:                 "settings.range",
		`set_settings {disk_percent: 1001}`:                  "settings.range",
		`set_settings {events_keep {seconds: -1}}`:           "settings.range",
		`set_settings {expected_index: 1 disk_percent: 100}`: "settings.index_mismatch",
	} {
		if r := st.do(command(t, c)); !problem.HasCode(problemOf(r), code) {
			t.Errorf("%s: %v", c, r.Problem)
		}
	}
	st.must(t, `set_settings {cpu_percent: 0 memory_percent: 0 disk_percent: 0}`)
	if n := st.s.View().Node("n1").GetAllocatable(); !proto.Equal(n, whole) {
		t.Errorf("node n1 has %v, and had %v", n, whole)
	}
	before := content(st.s.View())
	if r := st.do(command(t, `set_settings {memory_percent: 10}`)); !problem.HasCode(problemOf(r), "settings.in_use") || content(st.s.View()) != before {
		t.Errorf("%v", r.Problem)
	}
	if got := ownCopy(t, st.s).View().Settings(); got.GetModifyIndex() == 0 || got.GetMemoryPercent() != 100 {
		t.Errorf("a snapshot gives %v", got)
	}
}

func TestPercent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n, p := rapid.Uint64Range(1, 1<<57).Draw(t, "n"), rapid.Uint32Range(10, 6400).Draw(t, "percent")
		got := percent(n, p)
		if n < 1<<50 && got != max(n*uint64(p)/100, 1) || got == 0 || p == 100 && got != n {
			t.Fatalf("%d %% of %d are %d", p, n, got)
		}
	})
}

// Events are forgotten up to an index, and which are too old depends on their times alone.
func TestPruneEvents(t *testing.T) {
	st := newStory()
	at := func(seconds int64, c string) {
		cmd := command(t, c)
		cmd.Time = timestamppb.New(time.Unix(seconds, 0))
		if r := st.do(cmd); r.Problem != nil {
			t.Fatal(r.Problem)
		}
	}
	at(100, registerN1)
	at(200, createA)
	at(150, `label_vm {name: "a"}`) // another leader, whose clock is behind
	at(400, `label_vm {name: "a" labels {key: "x" value: "1"}}`)
	v := st.s.View()
	if v.OldestEvent().GetIndex() != 1 {
		t.Fatal(v.OldestEvent())
	}
	for before, want := range map[int64]uint64{100: 0, 101: 1, 199: 1, 201: 3, 1000: 4} {
		if got := v.EventsThrough(time.Unix(before, 0)); got != want {
			t.Errorf("of those before %d: through %d, want %d", before, got, want)
		}
	}
	st.must(t, `prune_events {through_index: 3}`)
	if left := st.s.View().Events(nil, 0); len(left) != 1 || left[0].GetIndex() != 4 {
		t.Errorf("%v are left", left)
	}
	if ownCopy(t, st.s).View().Hash() != st.s.View().Hash() {
		t.Error("a snapshot differs")
	}
}
