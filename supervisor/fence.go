package supervisor

import (
	"fmt"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/boottime"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
)

// renewAheadMax bounds how far in the future a deadline may lie: the longest
// lease is five minutes, for a planned restart, and a wrong value must not
// disarm the fence in effect.
const renewAheadMax = 10 * time.Minute

// Killer is a timer that kills. The one in production is the kernel's.
type Killer interface {
	// Set arms the timer for an absolute instant; zero disarms it.
	Set(at boottime.Instant) error
	Close() error
}

// Fence ends the exclusive lane at a deadline.
//
// Invariant: while a process of the lane runs, or is being started, the timer is
// Armed with the deadline. So neither this program nor the daemon need to be
// scheduled for the processes to be gone on time: the kernel kills the
// supervisor, and PDEATHSIG its children.
type Fence struct {
	lane driver.Lane
	now  func() boottime.Instant

	mu sync.Mutex
	// timer is nil on the shared lane.
	timer    Killer
	deadline boottime.Instant
	running  int
}

// NewFence makes the fence of an exclusive lane over a clock and a timer. The
// product's are the kernel's; the simulator has its own.
func NewFence(now func() boottime.Instant, timer Killer) *Fence {
	return &Fence{lane: driver.LaneExclusive, now: now, timer: timer}
}

func newFence(lane driver.Lane) (*Fence, error) {
	f := &Fence{lane: lane, now: boottime.Now}
	if lane == driver.LaneExclusive {
		t, err := newKernelTimer()
		if err != nil {
			return nil, err
		}
		f.timer = t
	}
	return f, nil
}

// Renew pushes the deadline forward and gives the one that holds. One that is
// not later than the present one changes nothing.
func (f *Fence) Renew(to boottime.Instant) (boottime.Instant, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer == nil {
		return 0, problem.New(problem.Invalid, "supervisor.no_fence", "the %s lane has no deadline to renew", f.lane)
	}
	if ahead := to.Sub(f.now()); ahead > renewAheadMax {
		return f.deadline, problem.New(problem.Invalid, "supervisor.deadline_too_far",
			"a deadline %v ahead is refused, at most %v is allowed", ahead, renewAheadMax)
	}
	if to <= f.deadline {
		return f.deadline, nil
	}
	if f.running > 0 && !planted.Is(planted.FenceNotMoved) {
		if err := f.timer.Set(to); err != nil {
			return f.deadline, err
		}
	}
	f.deadline = to
	return to, nil
}

// Enter is called before a process is started. It fails with a problem of kind
// Fenced on the exclusive lane when there is no lease.
func (f *Fence) Enter() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer != nil {
		if f.deadline <= f.now() {
			return problem.New(problem.Fenced, "supervisor.no_lease",
				"nothing is started on the exclusive lane without a lease that has not run out").
				WithHint("the node renews its lease as soon as it reaches a majority of the cluster")
		}
		if f.running == 0 && !planted.Is(planted.FenceNotArmed) {
			if err := f.timer.Set(f.deadline); err != nil {
				return err
			}
		}
	}
	f.running++
	return nil
}

// Leave is called after a process has ended or could not be started.
func (f *Fence) Leave() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.running--
	if f.timer == nil || f.running > 0 {
		return nil
	}
	return f.timer.Set(0)
}

// Armed gives the deadline when a process depends on it, else zero.
func (f *Fence) Armed() boottime.Instant {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.running == 0 || f.timer == nil {
		return 0
	}
	return f.deadline
}

func (f *Fence) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer == nil {
		return nil
	}
	return f.timer.Close()
}

// kernelTimer is a POSIX timer on CLOCK_BOOTTIME whose signal is SIGKILL to this
// process.
type kernelTimer struct{ id int32 }

// sigevent is struct sigevent of the kernel's ABI on 64-bit hosts.
type sigevent struct {
	value  uint64
	signo  int32
	notify int32
	_      [48]byte
}

// sigevSignal is SIGEV_SIGNAL: the signal goes to the process.
const sigevSignal = 0

// timerAbstime is TIMER_ABSTIME: the value is an instant, not a duration.
const timerAbstime = 1

func newKernelTimer() (*kernelTimer, error) {
	ev := sigevent{signo: int32(unix.SIGKILL), notify: sigevSignal}
	t := &kernelTimer{}
	_, _, errno := unix.Syscall(unix.SYS_TIMER_CREATE, unix.CLOCK_BOOTTIME,
		uintptr(unsafe.Pointer(&ev)), uintptr(unsafe.Pointer(&t.id)))
	if errno != 0 {
		return nil, fmt.Errorf("timer_create: %w", errno)
	}
	return t, nil
}

func (t *kernelTimer) Set(at boottime.Instant) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(at))}
	_, _, errno := unix.Syscall6(unix.SYS_TIMER_SETTIME, uintptr(t.id), timerAbstime,
		uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
	if errno != 0 {
		return fmt.Errorf("timer_settime: %w", errno)
	}
	return nil
}

func (t *kernelTimer) Close() error {
	if _, _, errno := unix.Syscall(unix.SYS_TIMER_DELETE, uintptr(t.id), 0, 0); errno != 0 {
		return fmt.Errorf("timer_delete: %w", errno)
	}
	return nil
}
