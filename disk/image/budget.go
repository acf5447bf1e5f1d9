package image

import (
	"sync"

	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

// budget counts the bytes of the store. Invariant: used <= limit after a charge,
// unless limit is 0.
type budget struct {
	limit int64

	mu   sync.Mutex
	used int64
}

// take counts bytes before they are written.
func (b *budget) take(n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limit > 0 && b.used+n > b.limit {
		return problem.New(problem.NoCapacity, "image.budget", "the node's images may take %s, %s are taken and %s more are needed",
			units.Size(b.limit), units.Size(b.used), units.Size(n)).
			WithHint("remove images that no VM uses (blixard image prune), or raise the node's budget for images")
	}
	b.used += n
	return nil
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
}

// hold is what one piece of work took. It is not safe for concurrent use.
type hold struct {
	b *budget
	n int64
}

func (b *budget) hold() *hold { return &hold{b: b} }

func (h *hold) charge(n int64) error {
	err := h.b.take(n)
	if err == nil {
		h.n += n
	}
	return err
}

// settle leaves keep bytes taken and gives the rest back. More than once it does
// nothing.
func (h *hold) settle(keep int64) {
	if h.n > 0 || keep > 0 {
		h.b.give(h.n - keep)
	}
	h.n = 0
}
