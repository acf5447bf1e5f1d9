package guest

import (
	"context"
	"errors"
	"time"

	"github.com/blixard/blixard/guest/wire"
	"github.com/blixard/blixard/internal/problem"
)

// SetTime gives the guest the host's time, which it takes if its own clock is more than half a second off, as
// it is after a pause. ahead is by how much the guest's clock was ahead; it is negative for one that was
// behind.
func (s *Session) SetTime(ctx context.Context) (ahead time.Duration, err error) {
	r, err := s.call(ctx, wire.Request{Method: wire.MethodSetTime, TimeUS: time.Now().UnixMicro()})
	return time.Duration(r.ClockOffUS) * time.Microsecond, err
}

// Processes lists the processes that have used the processor most, the busiest first, at most 32 and without
// the kernel's own. It waits for the ready event: before, it is refused as Unavailable/guest.not_running.
func (s *Session) Processes(ctx context.Context) ([]Process, error) {
	r, err := s.call(ctx, wire.Request{Method: wire.MethodTop})
	return r.Processes, err
}

// Probe makes the probe within the guest. A server that fails it is no error: see ProbeResult.OK. Where p has
// no timeout, ctx's deadline is the guest's too.
func (s *Session) Probe(ctx context.Context, p Probe) (ProbeResult, error) {
	if deadline, ok := ctx.Deadline(); ok && p.TimeoutMS == 0 {
		left := min(max(time.Until(deadline), time.Millisecond), wire.MaxProbe)
		p.TimeoutMS = uint32(left.Milliseconds())
	}
	r, err := s.call(ctx, wire.Request{Method: wire.MethodProbe, Probe: &p})
	if err != nil {
		return ProbeResult{}, err
	}
	if r.Probe == nil {
		return ProbeResult{}, protocolError(errors.New("an answer without a result"))
	}
	return *r.Probe, nil
}

// Stat tells of a file of the guest. A symbolic link is followed, and FileInfo.Link says where to; one that
// leads nowhere is told of itself. No such file is NotFound/guest.file.
func (s *Session) Stat(ctx context.Context, path string) (FileInfo, error) {
	r, err := s.call(ctx, wire.Request{Method: wire.MethodStat, Path: path})
	if err != nil {
		return FileInfo{}, err
	}
	if r.File == nil {
		return FileInfo{}, protocolError(errors.New("an answer without a file"))
	}
	return *r.File, nil
}

// Mount mounts a volume in a running guest, whose drive may be about to appear. One that is mounted there
// already is no error. Problems: Unavailable/guest.volume (the drive did not appear within five seconds),
// Conflict/guest.volume.
func (s *Session) Mount(ctx context.Context, m Mount) error {
	_, err := s.call(ctx, wire.Request{Method: wire.MethodMount, Mount: &m})
	return err
}

// Unmount takes a volume away from a running guest, with all its data on the drive when it returns. One that
// is not mounted is no error, one that is in use is refused as Conflict/guest.volume_busy.
func (s *Session) Unmount(ctx context.Context, path string) error {
	_, err := s.call(ctx, wire.Request{Method: wire.MethodUnmount, Path: path})
	return err
}

// Grow makes an ext4 as large as its drive, which has grown: that of the volume mounted at path, or of the
// writable disk where path is "/". It gives the file system's size in bytes, which is a little below the
// drive's. A drive that has not grown leaves it as it is, after a second of waiting for that.
func (s *Session) Grow(ctx context.Context, path string) (bytes int64, err error) {
	r, err := s.call(ctx, wire.Request{Method: wire.MethodGrow, Path: path})
	if err != nil {
		return 0, err
	}
	const most = 1 << 62
	return int64(min(r.Size, most)), nil
}

// CodeRefused is of a port that nobody in the guest listens on.
const CodeRefused = "guest.refused"

// badFrame is the problem of a frame that does not belong where it came.
func badFrame(t wire.FrameType) *problem.Error {
	return problem.New(problem.Internal, CodeProtocol, "guest: bad answer: frame of type %d among the data", t).
		WithHint("the guest's agent misbehaves: restart the VM if it goes on")
}
