package agent

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/internal/failpoint"
	"github.com/blixard/blixard/internal/problem"
)

// Limits of following a VM.
const (
	// connectTimeout of one try to reach the guest; the guest may still boot, so
	// a try that fails is no news.
	connectTimeout = 2 * time.Minute
	reconnectFirst = 20 * time.Millisecond
	reconnectMost  = 2 * time.Second
	// probeEvery and probeTimeout: a VMM that left probeTries questions in a row
	// unanswered counts as hung.
	probeEvery   = 10 * time.Second
	probeTimeout = 5 * time.Second
	probeTries   = 3
	// drainWait bounds how long the end of a held guest waits for its first
	// attacher to read everything.
	drainWait  = 10 * time.Second
	ackTimeout = 5 * time.Second
)

// follower is the goroutines around one running VM: they watch its process,
// hold the session with its guest and tell the core.
type follower struct {
	id    string
	name  string
	boots uint64
	rec   *blixardv1.AllocationRecord
	vm    driver.VM
	log   *slog.Logger

	cancel context.CancelFunc
	wg     sync.WaitGroup

	// paused: its processors stand still, and it can't answer.
	paused atomic.Bool
	// checks has the newest check in its one place, nil for none.
	checks chan *blixardv1.HealthCheck

	mu sync.Mutex
	// current session, nil while there is none; changed is closed and made anew
	// whenever it changes.
	current    *guest.Session
	changed    chan struct{}
	cancelStop context.CancelFunc
	// drained is closed when the first attacher has had everything.
	drained     chan struct{}
	drainedOnce sync.Once
	ended       bool
}

func (f *follower) session() *guest.Session {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.current
}

func (f *follower) setSession(s *guest.Session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.current = s
	close(f.changed)
	f.changed = make(chan struct{})
}

// waitSession gives the session, waiting for one at most that long; nil if none.
func (f *follower) waitSession(ctx context.Context, limit time.Duration) *guest.Session {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		f.mu.Lock()
		s, changed := f.current, f.changed
		f.mu.Unlock()
		if s != nil {
			return s
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		}
	}
}

// follow begins to follow a VM. The follower before it, if any, is ended.
func (a *Agent) follow(rec *blixardv1.AllocationRecord, vm driver.VM) {
	id := rec.GetAllocation().GetId()
	a.unfollow(id)
	ctx, cancel := context.WithCancel(a.life)
	f := &follower{
		id: id, name: rec.GetAllocation().GetVmName(), boots: rec.GetBoots(), rec: rec, vm: vm, cancel: cancel,
		log:     a.log.With("vm", rec.GetAllocation().GetVmName(), "alloc", id, "epoch", rec.GetAllocation().GetEpoch()),
		changed: make(chan struct{}), drained: make(chan struct{}), checks: make(chan *blixardv1.HealthCheck, 1),
	}
	f.paused.Store(rec.GetStatus().GetPaused())
	a.mu.Lock()
	a.followers[id] = f
	close(a.followersChanged)
	a.followersChanged = make(chan struct{})
	a.mu.Unlock()
	f.wg.Go(func() { a.watchProcess(ctx, f) })
	f.wg.Go(func() { a.watchGuest(ctx, f) })
	f.wg.Go(func() { a.watchVMM(ctx, f) })
	f.wg.Go(func() { a.watchHealth(ctx, f) })
	f.setCheck(rec.GetAllocation().GetSpec().GetHealth())
}

// setCheck tells the checker what to check from now on. Only the loop calls it.
func (f *follower) setCheck(check *blixardv1.HealthCheck) {
	select {
	case <-f.checks: // an older one that was not taken yet
	default:
	}
	f.checks <- check
}

func (a *Agent) follower(id string) *follower {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.followers[id]
}

// unfollow ends the goroutines around a VM and leaves the VM alone.
func (a *Agent) unfollow(id string) {
	a.mu.Lock()
	f := a.followers[id]
	delete(a.followers, id)
	a.mu.Unlock()
	if f == nil {
		return
	}
	f.cancel()
	f.wg.Wait()
	_ = f.vm.Close()
}

// watchProcess tells the core of the end of the process.
func (a *Agent) watchProcess(ctx context.Context, f *follower) {
	for {
		exit, err := f.vm.Wait(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			a.end(ctx, f, exit, true)
			return
		case problem.Is(err, problem.NotFound):
			a.end(ctx, f, driver.Exit{}, false)
			return
		}
		f.log.Warn("can't wait for the hypervisor; trying again", "err", err)
		if !pause(ctx, reconnectMost) {
			return
		}
	}
}

func (a *Agent) end(ctx context.Context, f *follower, exit driver.Exit, known bool) {
	// What the guest said before its end must reach the core first: the session
	// ends with the process, so its reader is soon done.
	f.mu.Lock()
	f.ended = true
	s := f.current
	f.mu.Unlock()
	if s != nil {
		select {
		case <-s.Done():
		case <-time.After(goodbyeWait):
		case <-ctx.Done():
			return
		}
	}
	a.post(ctx, func(now time.Time) { a.core.ProcessEnded(f.id, f.boots, exit, known) })
}

// goodbyeWait bounds the wait for a session to notice that its VMM is gone.
const goodbyeWait = 2 * time.Second

// watchGuest holds a session with the guest for as long as the VM runs.
func (a *Agent) watchGuest(ctx context.Context, f *follower) {
	delay := reconnectFirst
	for ctx.Err() == nil {
		ok, err := a.oneSession(ctx, f)
		if ok {
			delay = reconnectFirst
		} else if delay *= 2; delay > reconnectMost {
			delay = reconnectMost
		}
		if err != nil && ctx.Err() == nil {
			f.mu.Lock()
			ended := f.ended
			f.mu.Unlock()
			if ended {
				return
			}
			f.log.Debug("the guest's session ended; connecting again", "err", err)
		}
		if !pause(ctx, delay) {
			return
		}
	}
}

// oneSession connects, configures and follows the guest until the session ends;
// ok is whether there was one.
func (a *Agent) oneSession(ctx context.Context, f *follower) (ok bool, err error) {
	token, err := tokenOf(f.rec)
	if err != nil {
		return false, err
	}
	dial, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := f.vm.Connect(dial)
	if err != nil {
		return false, err
	}
	s, err := guest.Connect(dial, conn, token, guest.Options{})
	if err != nil {
		return false, errors.Join(err, conn.Close())
	}
	f.setSession(s)
	defer func() {
		f.setSession(nil)
		err = errors.Join(err, s.Close())
	}()
	for {
		select {
		case ev, open := <-s.Events():
			if !open {
				return true, s.Err()
			}
			if err := a.guestEvent(ctx, f, s, ev); err != nil {
				return true, err
			}
		case <-ctx.Done():
			return true, ctx.Err()
		}
	}
}

func (a *Agent) guestEvent(ctx context.Context, f *follower, s *guest.Session, ev guest.Event) error {
	st := ev.Status
	switch st.Phase {
	case guest.PhaseWaitingConfig:
		cfg, err := a.guestConfig(ctx, f.rec)
		if err != nil {
			f.log.Warn("the guest can't be told what to become", "err", err)
			return err
		}
		_, err = s.Configure(ctx, cfg)
		return err
	case guest.PhaseRunning, guest.PhaseStopping:
		failpoint.Hit("agent.ready")
		info := ReadyInfo{BootID: clip(st.BootID), KernelRelease: clip(st.KernelRelease)}
		a.post(ctx, func(now time.Time) { a.core.GuestReady(f.id, f.boots, info, now) })
		a.growGuest(ctx, f, s)
	case guest.PhaseExited:
		return a.guestExited(ctx, f, s, st)
	}
	return nil
}

// growGuest lets a guest use all of a root disk that grew.
func (a *Agent) growGuest(ctx context.Context, f *follower, s *guest.Session) {
	dir, err := a.journal.path(f.id)
	if err != nil {
		return
	}
	mark := filepath.Join(dir, rootDisk) + growMark
	if _, err := os.Lstat(mark); err != nil {
		return
	}
	err = within(ctx, growTimeout, func(ctx context.Context) error {
		_, err := s.Grow(ctx, "/")
		return err
	})
	if err == nil {
		err = os.Remove(mark)
	}
	if err != nil {
		f.log.Warn("the guest does not use all of its larger disk yet; it is tried again at its next start", "err", err)
	}
}

// growTimeout bounds the growing of a file system, which writes some blocks for each
// 128 MiB.
const growTimeout = time.Minute

// clip bounds a guest's word before it goes into the replicated state.
func clip(s string) string {
	const bytesMax = 128
	return lastLine(s[:min(len(s), bytesMax)])
}

// guestExited records the guest's goodbye durably and only then lets it go.
func (a *Agent) guestExited(ctx context.Context, f *follower, s *guest.Session, st guest.Status) error {
	if st.Exit == nil {
		return nil
	}
	bye := &blixardv1.GuestExit{
		Code: int32(st.Exit.Code), Reason: clip(string(st.Exit.Reason)), Message: lastLine(st.Exit.Message),
		Uptime: durationpb.New(time.Duration(st.ReadyUS) * time.Microsecond),
	}
	info := ReadyInfo{BootID: clip(st.BootID), KernelRelease: clip(st.KernelRelease)}
	a.post(ctx, func(now time.Time) {
		if st.Exit.Reason != guest.ExitBootFailed {
			a.core.GuestReady(f.id, f.boots, info, now)
		}
	})
	if f.rec.GetAllocation().GetSpec().GetHoldOutput() && st.Exit.Reason == guest.ExitCommand {
		select {
		case <-f.drained:
		case <-time.After(drainWait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if paths := f.rec.GetAllocation().GetArtifacts(); len(paths) > 0 && st.Exit.Reason == guest.ExitCommand {
		if err := a.takeArtifacts(ctx, f.id, paths, s); err != nil {
			f.log.Warn("the task's files can't be kept", "err", err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	kept := make(chan struct{})
	a.postThen(ctx, func(now time.Time) { a.core.GuestExited(f.id, f.boots, bye, now) }, func() { close(kept) })
	select {
	case <-kept:
	case <-ctx.Done():
		return ctx.Err()
	}
	failpoint.Hit("agent.exit.kept")
	return within(ctx, ackTimeout, s.AckExit)
}

// watchVMM drains the VMM's events and asks it now and then whether it lives.
func (a *Agent) watchVMM(ctx context.Context, f *follower) {
	events := f.vm.Events()
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	silent := 0
	for {
		select {
		case <-ctx.Done():
			return
		case ev, open := <-events:
			if !open {
				events = nil
				continue
			}
			f.log.Debug("hypervisor event", "kind", ev.Kind, "guest", ev.Guest)
		case <-tick.C:
			err := within(ctx, probeTimeout, f.vm.Responsive)
			if err == nil {
				silent = 0
				continue
			}
			if silent++; silent >= probeTries && ctx.Err() == nil {
				f.log.Warn("the hypervisor does not answer", "err", err)
				a.post(ctx, func(time.Time) { a.core.Hung(f.id, f.boots) })
				return
			}
		}
	}
}

// pause waits and says whether ctx still lives.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
