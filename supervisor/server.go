package supervisor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/boottime"
	"github.com/blixard/blixard/internal/cgroup"
	"github.com/blixard/blixard/internal/jail"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/process"
)

const (
	// processesMax running at a time on one lane: each holds 8 descriptors.
	processesMax = 8192
	// exitedMax processes are remembered until Forget; beyond it the oldest goes.
	exitedMax = 1024
)

// server owns the processes of a lane and answers the daemon.
type server struct {
	blixardv1.UnimplementedSupervisorServiceServer
	lane    driver.Lane
	version string
	started time.Time
	log     *slog.Logger
	fork    *forker
	fence   *Fence
	// groups bound jailed processes, libraries are those of their programs.
	groups    *cgroup.Tree
	libraries jail.Libraries
	// rate of each console.
	bytesPerSecond, bytesBurst int
	// shutdown is called when the daemon asks for the end.
	shutdown func()

	// spawning is held during a whole Spawn, so that one id is started once.
	spawning sync.Mutex
	// following counts the goroutines of processes and of console sessions.
	following sync.WaitGroup

	mu    sync.Mutex
	procs map[string]*proc
	// stopping is set before the end: nothing is started any more.
	stopping bool
}

// newServer makes the server of a lane whose files are in dir.
func newServer(lane driver.Lane, dir, version string, log *slog.Logger, shutdown func()) (*server, error) {
	groups, err := cgroup.Open(groupScope(lane, dir))
	if err != nil {
		return nil, err
	}
	if err := groups.Sweep(); err != nil {
		log.Warn("control groups of an earlier life can't be removed", "err", err)
	}
	fk, err := newForker()
	if err != nil {
		return nil, err
	}
	fc, err := newFence(lane)
	if err != nil {
		fk.stop()
		return nil, err
	}
	return &server{
		lane: lane, version: version, started: time.Now(), log: log, fork: fk, fence: fc, groups: groups,
		bytesPerSecond: consoleBytesPerSecond, bytesBurst: consoleBytesBurst,
		shutdown: shutdown, procs: make(map[string]*proc),
	}, nil
}

// groupScope names the control groups of one supervisor. Hosts of tests have
// several of one lane.
func groupScope(lane driver.Lane, dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return string(lane) + "-" + hex.EncodeToString(sum[:4])
}

// GetInfo implements the service.
func (s *server) GetInfo(context.Context, *blixardv1.GetInfoRequest) (*blixardv1.GetInfoResponse, error) {
	return &blixardv1.GetInfoResponse{
		Lane: string(s.lane), Pid: uint32(os.Getpid()), Version: s.version,
		StartedAt: timestamppb.New(s.started), BoottimeDeadline: int64(s.fence.Armed()),
		Processes: uint32(s.running()),
	}, nil
}

// Spawn implements the service.
func (s *server) Spawn(_ context.Context, r *blixardv1.SpawnRequest) (*blixardv1.SpawnResponse, error) {
	if err := validate(r); err != nil {
		return nil, err
	}
	s.spawning.Lock()
	defer s.spawning.Unlock()
	if p := s.find(r.GetProcessId()); p != nil {
		return &blixardv1.SpawnResponse{Process: p.snapshot(), Existed: true}, nil
	}
	if n := s.running(); n >= processesMax {
		return nil, problem.New(problem.NoCapacity, "supervisor.full", "the %s lane has %d processes, at most %d are allowed",
			s.lane, n, processesMax)
	}
	if err := s.fence.Enter(); err != nil {
		return nil, err
	}
	p, err := s.spawn(r)
	if err != nil {
		if lerr := s.fence.Leave(); lerr != nil {
			s.log.Error("disarming the fence failed", "err", lerr)
		}
		return nil, err
	}
	return &blixardv1.SpawnResponse{Process: p.snapshot()}, nil
}

// spawn starts a process and its goroutines. On an error nothing is left.
func (s *server) spawn(r *blixardv1.SpawnRequest) (_ *proc, err error) {
	id := r.GetProcessId()
	var undo []func() error
	defer func() {
		if err != nil {
			for _, u := range slices.Backward(undo) {
				err = errors.Join(err, u())
			}
			if problem.From(err).Kind == problem.Internal {
				err = spawnFailed(id, err)
			}
		}
	}()
	out, err := openLog(r.GetLogPath(), r.GetLogBytesMax(), r.GetLogFilesMax(), time.Now)
	if err != nil {
		return nil, err
	}
	undo = append(undo, out.discard)
	confined, group, notices, err := s.prepare(r)
	if err != nil {
		return nil, err
	}
	if group != nil {
		undo = append(undo, group.Remove)
	}
	// stopping is looked at and the process is entered under one lock, so that
	// stop sees either none or all of it.
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil, errStopped
	}
	c, release, err := s.fork.start(command{
		argv: r.GetArgv(), env: r.GetEnv(), dir: r.GetWorkingDir(), listeners: r.GetListeners(),
		taps: r.GetTaps(), files: r.GetFiles(), jail: confined,
	})
	undo = append(undo, func() error { return removeIn(r.GetWorkingDir(), r.GetListeners()) })
	if err != nil {
		return nil, err
	}
	undo = append(undo, func() error { defer release(); return abandon(c) })
	more, err := bound(c.pid, confined, group)
	if err != nil {
		return nil, err
	}
	notices = slices.Concat(notices, c.notices, more)
	p, err := s.adopt(r, c, out, group, release, notices)
	if err != nil {
		return nil, err
	}
	s.procs[id] = p
	s.dropOldestLocked()
	p.log.Info("process started", "pid", c.pid, "program", r.GetArgv()[0], "files", p.seen.GetMetadata()[driver.MetadataFiles])
	if len(notices) > 0 {
		p.log.Warn("the process is not confined in full", "missing", strings.Join(notices, "; "))
	}
	return p, nil
}

// abandon ends a child that can't be followed.
func abandon(c child) error {
	return errors.Join(end(c.pid), c.close())
}

// adopt makes the record of a started child and follows it.
func (s *server) adopt(r *blixardv1.SpawnRequest, c child, out *logFile, group *cgroup.Group, release func(), notices []string) (*proc, error) {
	ident, err := process.Identify(c.pid)
	if err != nil {
		return nil, err
	}
	h, err := process.NewHandle(c.pidfd)
	if err != nil {
		return nil, err
	}
	log := s.log.With("alloc", r.GetAllocationId(), "epoch", r.GetEpoch(), "process", r.GetProcessId())
	p := &proc{
		seen: &blixardv1.SupervisedProcess{
			ProcessId: r.GetProcessId(), AllocationId: r.GetAllocationId(), Epoch: r.GetEpoch(),
			Pid: uint32(ident.PID), StartTime: ident.StartTime, BootId: ident.BootID,
			StartedAt: timestamppb.Now(), Metadata: describe(r.GetMetadata(), c, r.GetJail() != nil, notices),
		},
		handle:  h,
		console: newConsole(c.pty, out, newLimiter(s.bytesPerSecond, s.bytesBurst, time.Now), log),
		stderr:  newStderrTail(c.stderr, r.GetLogPath()+".vmm", log),
		dir:     r.GetWorkingDir(), sockets: slices.Clone(r.GetListeners()),
		uid: r.GetJail().GetUid(), group: group, release: release,
		log: log, done: make(chan struct{}),
	}
	var pumps sync.WaitGroup
	pumps.Go(p.console.pump)
	pumps.Go(p.stderr.pump)
	s.following.Go(func() {
		p.follow(&pumps)
		if err := s.fence.Leave(); err != nil {
			p.log.Error("disarming the fence failed", "err", err)
		}
	})
	return p, nil
}

// dropOldestLocked forgets ended processes that nobody asked for; s.mu is held.
func (s *server) dropOldestLocked() {
	if len(s.procs) <= exitedMax {
		return
	}
	var ended []*proc
	for _, p := range s.procs {
		if p.exited() {
			ended = append(ended, p)
		}
	}
	if len(ended) <= exitedMax {
		return
	}
	slices.SortFunc(ended, func(a, b *proc) int {
		return a.seen.GetExit().GetAt().AsTime().Compare(b.seen.GetExit().GetAt().AsTime())
	})
	for _, p := range ended[:len(ended)-exitedMax] {
		delete(s.procs, p.seen.GetProcessId())
	}
}

func (s *server) find(id string) *proc {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.procs[id]
}

func (s *server) get(id string) (*proc, error) {
	if p := s.find(id); p != nil {
		return p, nil
	}
	return nil, problem.New(problem.NotFound, "supervisor.process_unknown", "the %s lane has no process %q", s.lane, id)
}

// all gives the processes by their ids.
func (s *server) all() []*proc {
	s.mu.Lock()
	defer s.mu.Unlock()
	ps := make([]*proc, 0, len(s.procs))
	for _, p := range s.procs {
		ps = append(ps, p)
	}
	slices.SortFunc(ps, func(a, b *proc) int { return strings.Compare(a.seen.GetProcessId(), b.seen.GetProcessId()) })
	return ps
}

func (s *server) running() int {
	n := 0
	for _, p := range s.all() {
		if !p.exited() {
			n++
		}
	}
	return n
}

// ListProcesses implements the service.
func (s *server) ListProcesses(context.Context, *blixardv1.ListProcessesRequest) (*blixardv1.ListProcessesResponse, error) {
	r := &blixardv1.ListProcessesResponse{}
	for _, p := range s.all() {
		r.Processes = append(r.Processes, p.snapshot())
	}
	return r, nil
}

// Wait implements the service.
func (s *server) Wait(ctx context.Context, r *blixardv1.WaitRequest) (*blixardv1.WaitResponse, error) {
	p, err := s.get(r.GetProcessId())
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
		return &blixardv1.WaitResponse{Process: p.snapshot()}, nil
	case <-ctx.Done():
		return nil, problem.From(ctx.Err())
	}
}

// SignalProcess implements the service.
func (s *server) SignalProcess(_ context.Context, r *blixardv1.SignalProcessRequest) (*blixardv1.SignalProcessResponse, error) {
	if r.GetSignal() < 1 || r.GetSignal() > signalMax {
		return nil, problem.New(problem.Invalid, "supervisor.signal", "no signal %d", r.GetSignal())
	}
	p, err := s.get(r.GetProcessId())
	if err != nil {
		return nil, err
	}
	if err := p.signal(unix.Signal(r.GetSignal())); err != nil {
		return nil, problem.New(problem.Internal, "supervisor.signal_failed", "signal process %s", r.GetProcessId()).WithCause(err)
	}
	return &blixardv1.SignalProcessResponse{}, nil
}

// Forget implements the service. Forgetting what is not known is no error.
func (s *server) Forget(_ context.Context, r *blixardv1.ForgetRequest) (*blixardv1.ForgetResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.procs[r.GetProcessId()]; p != nil {
		if !p.exited() {
			return nil, problem.New(problem.Conflict, "supervisor.process_running", "process %s still runs", r.GetProcessId()).
				WithHint("end it first")
		}
		delete(s.procs, r.GetProcessId())
	}
	return &blixardv1.ForgetResponse{}, nil
}

// Renew implements the service.
func (s *server) Renew(_ context.Context, r *blixardv1.RenewRequest) (*blixardv1.RenewResponse, error) {
	at, err := s.fence.Renew(boottime.Instant(r.GetBoottimeDeadline()))
	if err != nil {
		return nil, err
	}
	return &blixardv1.RenewResponse{BoottimeDeadline: int64(at)}, nil
}

// Shutdown implements the service.
func (s *server) Shutdown(context.Context, *blixardv1.ShutdownRequest) (*blixardv1.ShutdownResponse, error) {
	s.spawning.Lock()
	defer s.spawning.Unlock()
	if n := s.running(); n > 0 {
		return nil, problem.New(problem.Conflict, "supervisor.busy", "the supervisor of the %s lane has %d running processes", s.lane, n).
			WithHint("stop the VMs first; SIGTERM ends the supervisor together with them")
	}
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	s.shutdown()
	return &blixardv1.ShutdownResponse{}, nil
}

// endProcesses ends all processes, with SIGKILL after the grace. It returns when
// they are reaped and their waiters can be answered; none starts afterwards.
func (s *server) endProcesses(grace time.Duration) {
	s.mu.Lock()
	s.stopping = true
	s.mu.Unlock()
	ps := s.all()
	signalAll(ps, unix.SIGTERM)
	t := time.NewTimer(grace)
	defer t.Stop()
	for _, p := range ps {
		select {
		case <-p.done:
			continue
		case <-t.C:
			signalAll(ps, unix.SIGKILL)
		}
		break
	}
	for _, p := range ps {
		<-p.done
	}
}

func signalAll(ps []*proc, sig unix.Signal) {
	for _, p := range ps {
		if err := p.signal(sig); err != nil {
			p.log.Error("signal failed", "signal", int(sig), "err", err)
		}
	}
}

// close frees everything. No call may be in progress or come afterwards.
func (s *server) close() error {
	s.endProcesses(0)
	s.following.Wait()
	s.fork.stop()
	return errors.Join(s.groups.Close(), s.fence.Close())
}
