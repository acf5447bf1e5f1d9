package sim

import (
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

const (
	// loadSteady is short, since few leaders lead for long.
	loadSteady = 4 * time.Second
	// The load of a host stays for loadPhaseMin and up to loadPhaseMore longer.
	loadPhaseMin  = time.Second
	loadPhaseMore = 30 * time.Second
)

// loads of a host's processors over the time. They have chance of their own, so that they
// change nothing in runs where no node becomes busy.
type loads struct {
	*rand.Rand
	until   time.Duration
	percent *uint32
}

func newLoads(seed uint64, n int) loads { return loads{Rand: rand.New(rand.NewPCG(seed, uint64(n)))} }

// at gives the load at a time, which never goes back; nil where the host does not tell.
func (l *loads) at(now time.Duration) *uint32 {
	for now >= l.until {
		l.until += loadPhaseMin + time.Duration(l.Int64N(int64(loadPhaseMore)))
		switch low := l.Uint32N(80); l.IntN(8) {
		case 0:
			l.percent = nil
		case 1, 2, 3:
			l.percent = proto.Uint32(low)
		default:
			l.percent = proto.Uint32(80 + low/4)
		}
	}
	return l.percent
}

// busy is what the leader tells of the loads that it heard of.
func (h *host) busy(view *state.View) []*blixardv1.Command {
	cmds := h.table.Busy(view, true)
	for _, cmd := range cmds {
		for _, n := range cmd.GetSetBusy().GetNodes() {
			if n.GetBusy() {
				h.w.count("nodes busy")
			} else {
				h.w.count("nodes calm")
			}
		}
	}
	return cmds
}
