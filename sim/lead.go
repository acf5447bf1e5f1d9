package sim

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/leader"
	"github.com/blixard/blixard/state"
)

const (
	// roundInterval and proposalTime are those of the leader's loop.
	roundInterval = 250 * time.Millisecond
	proposalTime  = 30 * time.Second
)

// lead is what a host does while it leads; it drives the product's decisions as
// leader.Run does.
type lead struct {
	term     uint64
	core     *leader.Core
	members  leader.Members
	ready    bool
	index    uint64
	underWay int
	since    time.Duration
}

func (h *host) every(interval time.Duration, do func()) {
	life := h.life
	var again func()
	again = func() {
		if h.up && h.life == life {
			if !h.paused {
				h.actIn(life, do)
			}
			h.w.after(interval, again)
		}
	}
	h.w.after(h.w.between(0, interval), again)
}

// round is one look of the leader's loop.
func (h *host) round() {
	term := h.steps.LeadTerm()
	if term == 0 {
		h.lead = nil
		return
	}
	l := h.lead
	if l == nil || l.term != term {
		h.beginLead(term)
		return
	}
	if !l.ready || l.underWay > 0 {
		if h.w.now-l.since > proposalTime {
			h.lead = nil
		}
		return
	}
	view := h.steps.View()
	changes, err := view.ChangesAfter(l.index)
	if err != nil {
		h.lead = nil
		return
	}
	for _, c := range changes {
		l.core.Changed(c)
	}
	l.index, l.since = view.Index(), h.w.now
	cmds := append(l.core.Decide(view), h.table.Due(view.Nodes(), h.monotonic())...)
	cmds = append(cmds, leader.Dampen(view, epoch.Add(h.w.now))...)
	cmds = append(cmds, h.busy(view)...)
	cmds = append(cmds, l.core.TasksDue(view, h.now())...)
	cmds = append(cmds, l.core.Drains(view, h.monotonic())...)
	cmds = append(cmds, leader.PruneEvents(view, h.now())...)
	cmds = append(cmds, l.core.SchedulesDue(view, h.now())...)
	cmds = append(cmds, l.core.GroupsDue(view, h.now(), h.now())...)
	for _, cmd := range l.core.Reschedule(view, h.monotonic()) {
		h.w.count("VMs tried elsewhere")
		cmds = append(cmds, cmd)
	}
	if view.Cluster() != nil {
		cmds = append(cmds, h.changeMembers(l, view)...)
	}
	for _, cmd := range cmds {
		cmd.Actor, cmd.Time = "leader:"+h.nodeID, timestamppb.New(h.now())
		l.underWay++
		h.steps.ProposeInTermAsync(l.term, cmd, func(r state.Result, err error) {
			l.underWay--
			l.core.Refused(r.Refused)
			if err != nil && h.lead == l {
				h.lead = nil
			}
		})
	}
}

func (h *host) beginLead(term uint64) {
	l := &lead{term: term, core: leader.NewCore(h.w.newID, h.w.faults.stormPercent, h.w.faults.strategy), since: h.w.now}
	l.core.Preemption = h.w.faults.preemption
	l.members = leader.Members{Voters: h.w.faults.voters, ReplaceAfter: h.w.faults.replaceAfter}
	l.members.Begin()
	h.table.Begin(term, h.monotonic())
	h.lead = l
	h.read(func(err error) {
		switch {
		case h.lead != l:
		case err != nil:
			h.lead = nil
		default:
			view := h.steps.View()
			l.core.Reset(view)
			l.index, l.ready = view.Index(), true
		}
	})
}

// changeMembers decides who votes.
func (h *host) changeMembers(l *lead, view *state.View) []*blixardv1.Command {
	m, err := h.steps.Membership(context.Background())
	if err != nil {
		return nil
	}
	cmds := l.members.Roles(m, view.Members(), leader.Domains(view), h.monotonic())
	change, transferTo := l.members.Change(m, view.Members())
	switch {
	case transferTo != 0:
		h.w.note("host %d: hands the lead to replica %d", h.n, transferTo)
		_ = h.steps.TransferLeader(context.Background(), transferTo)
	case change != nil:
		h.w.count("changes of members")
		h.w.note("host %d: members %s", h.n, changeText(change))
		_ = h.steps.ChangeMembers(context.Background(), change)
	}
	return cmds
}

func changeText(m proto.Message) string {
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	return fmt.Sprintf("%x", b)
}
