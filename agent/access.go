package agent

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/internal/problem"
)

// Place is where a VM's processes are found on this node.
type Place struct {
	Lane      driver.Lane
	ProcessID string
	LogPath   string
}

// Session gives the session with an allocation's guest. With wait it waits until
// there is one, for as long as ctx lives; otherwise a missing one is a problem of
// kind Unavailable. The session belongs to the agent: do not close it.
func (a *Agent) Session(ctx context.Context, allocID string, wait bool) (*guest.Session, error) {
	for {
		a.mu.Lock()
		f, changed := a.followers[allocID], a.followersChanged
		a.mu.Unlock()
		if f != nil {
			f.mu.Lock()
			s := f.current
			changed = f.changed
			f.mu.Unlock()
			if s != nil {
				return s, nil
			}
		}
		if !wait {
			return nil, problem.New(problem.Unavailable, "guest.no_session", "the guest's agent does not answer").
				WithHint("the VM may still boot or be stopping; see `blixard vm status` and `blixard vm logs`")
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for the guest: %w", ctx.Err())
		}
	}
}

// Drained tells that the first attacher of a VM that holds its output has read
// everything, so that the guest may go.
func (a *Agent) Drained(allocID string) {
	if f := a.follower(allocID); f != nil {
		f.drainedOnce.Do(func() { close(f.drained) })
	}
}

// Hold keeps the processors of a running VM still until release is called, for what
// must not see them write. A VM that ended meanwhile is no error.
func (a *Agent) Hold(ctx context.Context, allocID string) (release func(), err error) {
	f := a.follower(allocID)
	if f == nil || f.paused.Load() {
		return func() {}, nil
	}
	if err := f.vm.Pause(ctx); err != nil {
		return nil, fmt.Errorf("hold vm %s: %w", f.name, err)
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), adoptTimeout)
		defer cancel()
		if err := f.vm.Resume(ctx); err != nil {
			f.log.Error("a VM that was held can't be resumed", "err", err)
			return
		}
		if s := f.session(); s != nil {
			if _, err := s.SetTime(ctx); err != nil {
				f.log.Warn("the guest's clock was not set after a pause", "err", err)
			}
		}
	}, nil
}

// GrowVolume tells a running VM that the disk of its volume of that index has grown
// to that many bytes, and lets its guest grow the file system.
func (a *Agent) GrowVolume(ctx context.Context, allocID string, index int, bytes uint64) error {
	f := a.follower(allocID)
	if f == nil {
		return nil // it grows with its next start
	}
	if err := f.vm.ResizeDrive(ctx, firstVolume+index, bytes); err != nil {
		return err
	}
	s := f.session()
	volumes := f.rec.GetAllocation().GetVolumes()
	if s == nil || index >= len(volumes) {
		return problem.New(problem.Unavailable, "guest.no_session", "the guest's agent does not answer")
	}
	_, err := s.Grow(ctx, volumes[index].GetPath())
	return err
}

// firstVolume is the index of the first volume among a VM's drives, behind the image
// and the writable disk.
const firstVolume = 2

// Locate gives the newest boot's process of an allocation of this node. A problem
// of kind NotFound says that the node has nothing of it.
func (a *Agent) Locate(allocID string) (Place, error) {
	dir, err := a.journal.path(allocID)
	if err != nil {
		return Place{}, err
	}
	rec, err := a.journal.read(allocID)
	if err != nil {
		return Place{}, problem.New(problem.NotFound, "allocation.not_here", "nothing of the VM is on this node yet").
			WithHint("see `blixard vm status` for where it is")
	}
	return Place{
		Lane:      LaneOf(rec.GetAllocation().GetSpec()),
		ProcessID: ProcessID(rec),
		LogPath:   filepath.Join(dir, consoleLog),
	}, nil
}
