package volume

import (
	"context"

	"github.com/blixard/blixard/disk"
	"github.com/blixard/blixard/internal/problem"
)

// access is how a step uses a volume.
type access bool

const (
	// shared steps read the disk, or add files beside it.
	shared access = false
	// exclusive steps replace or remove files that others read.
	exclusive access = true
)

// gate of one volume. Store.mu guards its fields.
type gate struct {
	readers int
	writer  bool
	// waiting keeps the gate while nobody is inside.
	waiting int
	// free is closed, and made anew, when somebody leaves.
	free chan struct{}
}

// hold is acquire and open. The caller calls done, once, and does not use d then.
// Problems: those of both.
func (s *Store) hold(ctx context.Context, id string, how access) (d *disk.Dir, done func(), err error) {
	release, err := s.acquire(ctx, id, how)
	if err != nil {
		return nil, nil, err
	}
	if d, err = s.open(id); err != nil {
		release()
		return nil, nil, err
	}
	return d, func() { _ = d.Close(); release() }, nil
}

// acquire waits until the volume may be used so. The caller calls release, once.
// Problems: Invalid volume.bad_id, Unavailable volume.busy when ctx ends first.
func (s *Store) acquire(ctx context.Context, id string, how access) (release func(), err error) {
	if err := check("volume", id); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.gates[id]
	if g == nil {
		g = &gate{free: make(chan struct{})}
		s.gates[id] = g
	}
	for !g.enterLocked(how) {
		free := g.free
		g.waiting++
		s.mu.Unlock()
		select {
		case <-free:
		case <-ctx.Done():
		}
		s.mu.Lock()
		g.waiting--
		if ctx.Err() != nil {
			s.dropLocked(id, g)
			return nil, problem.New(problem.Unavailable, "volume.busy", "another step of volume %s goes on", id).
				WithCause(context.Cause(ctx)).WithHint("try again when it is done")
		}
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if how == exclusive {
			g.writer = false
		} else {
			g.readers--
		}
		close(g.free)
		g.free = make(chan struct{})
		s.dropLocked(id, g)
	}, nil
}

// try is acquire that does not wait.
func (s *Store) try(id string) (release func(), ok bool) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	release, err := s.acquire(ctx, id, exclusive)
	return release, err == nil
}

func (g *gate) enterLocked(how access) bool {
	if g.writer || how == exclusive && g.readers > 0 {
		return false
	}
	if how == exclusive {
		g.writer = true
	} else {
		g.readers++
	}
	return true
}

func (s *Store) dropLocked(id string, g *gate) {
	if !g.writer && g.readers == 0 && g.waiting == 0 {
		delete(s.gates, id)
	}
}
