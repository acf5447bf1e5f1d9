package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/process"
	"github.com/blixard/blixard/internal/unixsocket"
)

const (
	// stopGrace is what processes have between SIGTERM and SIGKILL when the
	// supervisor is told to end.
	stopGrace = 2 * time.Second
	// answerGrace lets the answer to Shutdown out.
	answerGrace = time.Second
	// gcPercent and memoryLimitBytes keep the heap of a small process small. The
	// limit is soft: 256 VMs with full rings are 20 MiB.
	gcPercent        = 50
	memoryLimitBytes = 64 << 20
	// threads that run Go code at a time.
	threads = 2
	// threadsOwn of the supervisor: those that wait in system calls are many only when
	// disks hang.
	threadsOwn = 2048
	// streamsMax bounds calls at a time: a Wait for each process and some more.
	streamsMax = 2*processesMax + 1024
	// ioBytes of the buffers of a connection: messages are small.
	ioBytes = 8 << 10
)

// Config of a supervisor.
type Config struct {
	Lane driver.Lane
	// Dir holds the directories of the lanes.
	Dir string
	// Version of the program, for the record.
	Version string
	// Log of what the supervisor does; nil means standard error.
	Log *slog.Logger
}

// Run is a supervisor's life. It returns when the context ends, SIGTERM or SIGINT
// comes (its processes are then ended, too), or the daemon asked for the end and
// no process ran. It fails with a problem of kind Conflict when the lane has a
// supervisor already.
//
// It is meant to be all that a program does: it sets limits of the whole process.
func Run(ctx context.Context, cfg Config) error {
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimitBytes)
	// A jailed process has a thread here.
	debug.SetMaxThreads(processesMax + threadsOwn)
	runtime.GOMAXPROCS(min(threads, runtime.NumCPU()))
	// A VMM's core would hold its guest's memory.
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return err
	}
	if err := keepDescriptors(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	return serve(ctx, cfg)
}

// keepDescriptors makes sure that what this process inherited from whoever
// started it is not handed on: a VMM gets what it is given and nothing else.
func keepDescriptors() error {
	err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	return nil
}

// serve is Run without what concerns the whole process.
func serve(ctx context.Context, cfg Config) (err error) {
	if err := checkLane(cfg.Lane); err != nil {
		return err
	}
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	log = log.With("lane", string(cfg.Lane))
	p := lanePaths(cfg.Dir, cfg.Lane)
	if err := makeDir(p); err != nil {
		return err
	}
	lock, err := lockLane(p, cfg.Lane)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := newServer(cfg.Lane, p.dir, cfg.Version, log, cancel)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	id, err := process.Identify(os.Getpid())
	if err != nil {
		return err
	}
	err = writeRecord(p, Record{
		Format: recordFormat, Lane: cfg.Lane, PID: id.PID, StartTime: id.StartTime, BootID: id.BootID, Version: cfg.Version,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(p.record)) }()
	return listenAndServe(ctx, p, s, log)
}

func makeDir(p paths) error {
	if err := os.MkdirAll(p.dir, dirMode); err != nil {
		return err
	}
	return os.Chmod(p.dir, dirMode)
}

func listenAndServe(ctx context.Context, p paths, s *server, log *slog.Logger) error {
	l, err := unixsocket.Listen(p.socket, fileMode)
	if err != nil {
		return err
	}
	g := grpc.NewServer(
		grpc.MaxRecvMsgSize(requestBytesMax),
		grpc.MaxConcurrentStreams(streamsMax),
		grpc.ReadBufferSize(ioBytes), grpc.WriteBufferSize(ioBytes),
		grpc.WaitForHandlers(true),
	)
	blixardv1.RegisterSupervisorServiceServer(g, s)
	served := make(chan error, 1)
	go func() { served <- g.Serve(peerListener{l, log}) }()
	log.Info("supervisor listens", "socket", p.socket, "version", s.version)
	select {
	case err = <-served:
	case <-ctx.Done():
		// With the processes end the calls that wait for them.
		s.endProcesses(stopGrace)
		t := time.AfterFunc(answerGrace, g.Stop)
		g.GracefulStop()
		t.Stop()
		if err = <-served; errors.Is(err, grpc.ErrServerStopped) {
			err = nil // it was to end before it had begun to serve
		}
	}
	g.Stop()
	if rerr := os.Remove(p.socket); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	log.Info("supervisor ends")
	return err
}

// peerListener accepts connections of this process's own user and of root only.
type peerListener struct {
	*net.UnixListener
	log *slog.Logger
}

// Accept implements net.Listener.
func (l peerListener) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if err := checkPeer(c); err != nil {
			l.log.Warn("connection refused", "err", err)
			_ = c.Close()
			continue
		}
		return c, nil
	}
}

// checkPeer refuses a peer of another user than this process's and root.
func checkPeer(c *net.UnixConn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var cerr error
	if err := rc.Control(func(fd uintptr) { cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return err
	}
	if cerr != nil {
		return cerr
	}
	return allowUID(int(cred.Uid), os.Geteuid())
}

func allowUID(peer, own int) error {
	if peer != own && peer != 0 {
		return problem.New(problem.Denied, "supervisor.peer", "user %d may not talk to a supervisor of user %d", peer, own)
	}
	return nil
}

var _ io.Closer = peerListener{}
