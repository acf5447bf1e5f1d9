package sim

import (
	"crypto/sha256"
	"hash/crc64"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

// hashEvery so many indexes, and at every index that another host was hashed at.
const hashEvery = 32

var table = crc64.MakeTable(crc64.ECMA)

// agreed is an entry that some host applied.
type agreed struct{ term, sum uint64 }

// checks hold what must be true at every step.
type checks struct {
	w       *world
	log     map[uint64]agreed
	newest  uint64
	states  map[uint64][sha256.Size]byte
	leaders map[uint64]int
	epochs  map[string]uint64
	lives   map[life]string
	acked   map[uint64]bool
}

func newChecks(w *world) *checks {
	return &checks{
		w: w, log: map[uint64]agreed{}, states: map[uint64][sha256.Size]byte{}, leaders: map[uint64]int{},
		epochs: map[string]uint64{}, lives: map[life]string{}, acked: map[uint64]bool{},
	}
}

// applied: all hosts apply the same entries in the same order, each once.
func (c *checks) applied(h *host, e *raftpb.Entry) {
	index := e.GetIndex()
	if index != h.applied+1 {
		c.w.fail("host %d applied entry %d after %d", h.n, index, h.applied)
	}
	h.applied = index
	one := agreed{e.GetTerm(), crc64.Checksum(e.GetData(), table)}
	if known, ok := c.log[index]; !ok {
		c.log[index] = one
		c.newest = max(c.newest, index)
		c.w.mix(index, one.term, one.sum)
	} else if known != one {
		c.w.fail("host %d applied entry %d of term %d, another host one of term %d", h.n, index, one.term, known.term)
	}
}

// acknowledged: what a client is told was applied.
func (c *checks) acknowledged(r state.Result, cmd *blixardv1.Command) {
	if _, ok := c.log[r.Index]; !ok {
		c.w.fail("%s was acknowledged at index %d, which nobody applied", proto.MessageName(cmd).Name(), r.Index)
	}
	c.acked[r.Index] = true
	c.w.count("changes")
}

// checkLeader: a term has one leader.
func (h *host) checkLeader() {
	term := h.steps.LeadTerm()
	if term == 0 {
		return
	}
	c := h.w.checks
	if other, ok := c.leaders[term]; !ok {
		c.leaders[term] = h.n
		h.w.count("terms")
		h.w.note("host %d: leads term %d", h.n, term)
	} else if other != h.n {
		h.w.fail("hosts %d and %d lead term %d", other, h.n, term)
	}
}

// checkState: equal indexes are equal states, and what the state promises holds.
func (h *host) checkState() {
	view := h.steps.View()
	index := view.Index()
	h.applied = max(h.applied, index)
	if h.applied != index {
		h.w.fail("host %d is at index %d after it applied %d", h.n, index, h.applied)
	}
	c := h.w.checks
	known, ok := c.states[index]
	if !ok && index%hashEvery != 0 && !h.w.chance(0.03) {
		return
	}
	hash := view.Hash()
	h.w.mix(uint64(hash[0]), uint64(hash[1]))
	if !ok {
		c.states[index] = hash
		c.promises(view)
	} else if known != hash {
		h.w.fail("host %d has another state at index %d", h.n, index)
	}
}

// promises of the state that no command may break.
func (c *checks) promises(view *state.View) {
	used := map[string]uint64{}
	of := map[string]string{}
	for _, a := range view.Allocations() {
		used[a.GetNodeId()] += view.Limits().Reservation(a.GetSpec()).GetMemoryMib()
		if other, ok := of[a.GetVmId()]; ok && a.GetStatus().GetState() != blixardv1.AllocationState_lost {
			c.w.fail("VM %s has allocations %s and %s", a.GetVmId(), other, a.GetId())
		}
		of[a.GetVmId()] = a.GetId()
		c.fence(a)
	}
	for _, n := range view.Nodes() {
		if got, limit := used[n.GetId()], n.GetAllocatable().GetMemoryMib(); got > limit {
			c.w.fail("node %s gives %d MiB of %d", n.GetName(), got, limit)
		}
	}
}

// life of a VM is told by its epoch.
type life struct {
	vm    string
	epoch uint64
}

// fence: two allocations of a VM never have the same epoch, and one has never two.
func (c *checks) fence(a *blixardv1.Allocation) {
	key := life{a.GetVmId(), a.GetEpoch()}
	if known, ok := c.lives[key]; ok && known != a.GetId() {
		c.w.fail("allocations %s and %s of VM %s have epoch %d", known, a.GetId(), a.GetVmId(), a.GetEpoch())
	}
	if known, ok := c.epochs[a.GetId()]; ok && known != a.GetEpoch() {
		c.w.fail("allocation %s had epoch %d and has %d", a.GetId(), known, a.GetEpoch())
	}
	c.lives[key], c.epochs[a.GetId()] = a.GetId(), a.GetEpoch()
}
