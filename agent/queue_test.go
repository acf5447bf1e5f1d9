package agent

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
)

// A poll looks at what changed, at what waited for its time and at what may boot. Whatever
// happens, one that looks at everything does the same.
func TestPollMissesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pair := newPair()
		t.Repeat(map[string]func(*rapid.T){
			"allocation": pair.allocation,
			"drop":       pair.drop,
			"list":       pair.list,
			"done":       pair.done,
			"boot":       pair.boot,
			"ready":      pair.ready,
			"exit":       pair.exit,
			"ended":      pair.ended,
			"health":     pair.health,
			"hung":       pair.hung,
			"restart":    pair.restart,
			"time":       pair.time,
			"":           pair.poll,
		})
	})
}

// pair is a core, and one that looks at all of its instances in each poll, counts them anew
// and looks for a free user from the first on.
type pair struct {
	core, whole *Core
	now         time.Time
	index       uint64
	allocs      map[string]*blixardv1.Allocation
	// begun actions, by their allocation.
	begun map[string]Action
}

const pairIDs = 4

func newPair() *pair {
	p := &pair{now: time.Unix(1000, 0), allocs: map[string]*blixardv1.Allocation{}, begun: map[string]Action{}}
	p.core, p.whole = p.fresh(), p.fresh()
	return p
}

func (p *pair) fresh() *Core {
	return NewCore(Limits{Boots: 2, ReadyTimeout: 20 * time.Second}, "tcg", func() []byte { return make([]byte, channelBytes) })
}

func (p *pair) both(do func(*Core)) {
	do(p.core)
	do(p.whole)
}

func anyID(t *rapid.T) string {
	return fmt.Sprintf("alloc-%d", rapid.IntRange(1, pairIDs).Draw(t, "id"))
}

func (p *pair) allocation(t *rapid.T) {
	p.set(anyID(t), func(a *blixardv1.Allocation) {
		a.StartCount += rapid.Uint64Range(0, 1).Draw(t, "starts")
		a.Desired = rapid.SampledFrom([]blixardv1.DesiredAllocation_Enum{
			blixardv1.DesiredAllocation_run, blixardv1.DesiredAllocation_stop, blixardv1.DesiredAllocation_remove,
		}).Draw(t, "desired")
		a.ForceStop = rapid.Bool().Draw(t, "force")
		a.Spec = &blixardv1.VMSpec{
			Paused:     rapid.Bool().Draw(t, "paused"),
			Restart:    &blixardv1.RestartPolicy{Mode: rapid.SampledFrom([]blixardv1.RestartMode_Enum{blixardv1.RestartMode_always, blixardv1.RestartMode_never}).Draw(t, "mode")},
			Scheduling: &blixardv1.Scheduling{Priority: proto.Uint32(rapid.Uint32Range(1, 3).Draw(t, "priority"))},
		}
	})
}

// set changes what the cluster wants of an allocation.
func (p *pair) set(id string, change func(*blixardv1.Allocation)) {
	p.index++
	a := &blixardv1.Allocation{Id: id, Epoch: 1, Generation: 1, StartCount: 1, Spec: &blixardv1.VMSpec{}}
	if old := p.allocs[id]; old != nil {
		a = proto.CloneOf(old)
	}
	a.ModifyIndex = p.index
	change(a)
	p.allocs[id] = a
	p.both(func(c *Core) { c.SetAllocation(a) })
}

func (p *pair) drop(t *rapid.T) {
	id := anyID(t)
	delete(p.allocs, id)
	p.both(func(c *Core) { c.DropAllocation(id) })
}

func (p *pair) list(t *rapid.T) {
	ids := map[string]bool{}
	for id := range p.allocs {
		ids[id] = true
	}
	if rapid.Bool().Draw(t, "synced alone") {
		p.both((*Core).Synced)
		return
	}
	p.both(func(c *Core) { c.Resync(ids) })
}

func (p *pair) done(t *rapid.T) {
	if len(p.begun) > 0 {
		p.end(t, rapid.SampledFrom(slices.Sorted(maps.Keys(p.begun))).Draw(t, "of"), rapid.IntRange(0, 3).Draw(t, "fails") == 0)
	}
}

// boot lets one VM run, where it may.
func (p *pair) boot(t *rapid.T) {
	id := anyID(t)
	p.set(id, func(a *blixardv1.Allocation) { a.Desired = blixardv1.DesiredAllocation_run })
	p.both((*Core).Synced)
	for range 3 {
		p.poll(t)
		if _, ok := p.begun[id]; ok {
			p.end(t, id, false)
		}
	}
}

func (p *pair) end(t *rapid.T, id string, fails bool) {
	a := p.begun[id]
	delete(p.begun, id)
	d := Done{Action: a}
	switch {
	case fails:
		d.Err = errors.New("the host has no more of it")
	case a.Kind == ActionPrepare:
		d.Image = &blixardv1.Image{Digest: "sha256:1"}
	case a.Kind == ActionStart, a.Kind == ActionAdopt:
		d.Started = &blixardv1.SupervisedProcess{ProcessId: ProcessID(a.Record), Pid: 1}
		d.Gone = a.Kind == ActionAdopt && rapid.Bool().Draw(t, "gone")
	}
	p.both(func(c *Core) { c.ActionDone(d, p.now) })
}

// boots gives a boot of an allocation, mostly the newest.
func (p *pair) boots(t *rapid.T, id string) uint64 {
	return p.core.Record(id).GetBoots() - min(p.core.Record(id).GetBoots(), rapid.Uint64Range(0, 4).Draw(t, "late")/4)
}

func (p *pair) ready(t *rapid.T) {
	id := anyID(t)
	n := p.boots(t, id)
	p.both(func(c *Core) { c.GuestReady(id, n, ReadyInfo{BootID: fmt.Sprint(n)}, p.now) })
}

func (p *pair) exit(t *rapid.T) {
	id := anyID(t)
	n := p.boots(t, id)
	bye := &blixardv1.GuestExit{Reason: rapid.SampledFrom([]string{"exit", goodbyeReboot, goodbyePowerOff}).Draw(t, "reason"), Code: 1}
	p.both(func(c *Core) { c.GuestExited(id, n, bye, p.now) })
}

func (p *pair) ended(t *rapid.T) {
	id := anyID(t)
	n, known := p.boots(t, id), rapid.Bool().Draw(t, "known")
	p.both(func(c *Core) { c.ProcessEnded(id, n, driver.Exit{Code: 1}, known) })
}

func (p *pair) health(t *rapid.T) {
	id := anyID(t)
	n, h := p.boots(t, id), rapid.SampledFrom([]blixardv1.Health_Enum{blixardv1.Health_healthy, blixardv1.Health_unhealthy}).Draw(t, "health")
	p.both(func(c *Core) { c.Health(id, n, h, "it says so") })
}

func (p *pair) hung(t *rapid.T) {
	id := anyID(t)
	n := p.boots(t, id)
	p.both(func(c *Core) { c.Hung(id, n) })
}

// restart begins both anew, from the records that were kept.
func (p *pair) restart(t *rapid.T) {
	old := p.core
	p.core, p.whole, p.begun = p.fresh(), p.fresh(), map[string]Action{}
	for n := range pairIDs {
		i := old.instances[fmt.Sprintf("alloc-%d", n+1)]
		if i == nil || i.rec == nil {
			continue
		}
		var process *blixardv1.SupervisedProcess
		if i.process == processRunning && rapid.Bool().Draw(t, "runs on") {
			process = &blixardv1.SupervisedProcess{StartedAt: timestamppb.New(i.startedAt)}
		}
		p.both(func(c *Core) { c.Recover(i.rec, process) })
	}
}

func (p *pair) time(t *rapid.T) {
	p.now = p.now.Add(time.Duration(rapid.IntRange(1, 30_000).Draw(t, "ms")) * time.Millisecond)
}

// poll lets both decide, which is the same.
func (p *pair) poll(t *rapid.T) {
	for _, i := range p.whole.instances {
		p.whole.touch(i)
		p.whole.count(i)
	}
	p.whole.uidNext = uidFirst
	got, want := p.core.Turn(p.now), p.whole.Turn(p.now)
	if g, w := turnText(got), turnText(want); g != w {
		t.Fatalf("one that looks at what is due:\n%s\none that looks at all:\n%s", g, w)
	}
	booting, uids := 0, map[uint32]int{}
	for _, i := range p.core.instances {
		if i.boots() {
			booting++
		}
		uids[i.rec.GetUid()]++
	}
	if booting != p.core.booting {
		t.Fatalf("%d boot and %d are counted", booting, p.core.booting)
	}
	for uid, n := range uids {
		if uid != 0 && (n != 1 || p.core.uids[uid] != 1) {
			t.Fatalf("%d VMs have user %d, %d are counted", n, uid, p.core.uids[uid])
		}
	}
	for _, a := range got.Actions {
		if a.Kind != ActionCancel {
			p.begun[a.Record.GetAllocation().GetId()] = a
		}
	}
}

func turnText(t Turn) string {
	s := fmt.Sprintf("%v\nwake %v\n", t.Actions, t.Wake)
	for _, r := range t.Reports {
		s += fmt.Sprintln("report", r)
	}
	for _, r := range t.Keep {
		s += fmt.Sprintln("keep", r)
	}
	return s
}
