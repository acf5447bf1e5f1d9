package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"
)

const (
	// consoleReadBytes at a time: a pty gives at most 4095.
	consoleReadBytes = 4 << 10
	// watchersMax of one console.
	watchersMax = 64
	// inputTimeout bounds how long input waits for a guest that does not read;
	// what is left then is dropped.
	inputTimeout = 500 * time.Millisecond
	// drainTimeout bounds how long the rest of a console is awaited after its
	// process has ended. A pty holds 64 KiB at most; only a stranger that keeps the
	// slave side open can make it this long.
	drainTimeout = time.Second
)

// errConsoleFull is the answer to a watcher too many.
var errConsoleFull = fmt.Errorf("the console has %d watchers already", watchersMax)

// console drains a pty, whoever watches or does not, into a ring and a log.
//
// Watchers read from the ring at their own pace and hold no buffer of their own:
// one that falls behind by more than the ring skips to the oldest byte there and
// is told how many it missed. So none can block the guest, the log or another.
type console struct {
	pty *os.File
	out *logFile
	lim *limiter
	log *slog.Logger
	// ending is closed when the process has ended: then nothing is slowed any more.
	ending chan struct{}
	// drained is closed when the pty has given all.
	drained chan struct{}

	mu       sync.Mutex
	ring     ring
	watchers map[*watcher]struct{}
	// seat is the one watcher that may write.
	seat *watcher
	// ended is set when no more output will come.
	ended bool
}

func newConsole(pty *os.File, out *logFile, lim *limiter, log *slog.Logger) *console {
	return &console{
		pty: pty, out: out, lim: lim, log: log,
		ending: make(chan struct{}), drained: make(chan struct{}),
		watchers: make(map[*watcher]struct{}),
	}
}

// pump runs until the pty is at its end, which is when the process has ended, or
// has closed it, or finish gave up on it.
func (c *console) pump() {
	defer close(c.drained)
	buf := make([]byte, consoleReadBytes)
	failing := false
	for {
		n, err := c.pty.Read(buf)
		if n > 0 {
			c.keep(buf[:n])
			if werr := c.out.write(buf[:n]); (werr != nil) != failing {
				failing = werr != nil
				c.noteLog(werr)
			}
			c.rest(c.lim.take(n))
		}
		if err != nil {
			c.end()
			return
		}
	}
}

// noteLog tells once that the log can't be written, and once that it can again.
func (c *console) noteLog(err error) {
	if err != nil {
		c.log.Error("console log can't be written, output is dropped", "err", err)
		return
	}
	c.log.Info("console log is written again")
}

// rest lets the guest wait: what is not read fills the pty, and then the VMM
// stops to take output from the guest.
func (c *console) rest(d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.ending:
	}
}

func (c *console) keep(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ring.write(p)
	c.wakeLocked()
}

func (c *console) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
	c.wakeLocked()
}

func (c *console) wakeLocked() {
	for w := range c.watchers {
		w.wakeUp()
	}
}

// finish is called once, after the process has ended: it takes what the pty still
// holds and closes it and the log.
func (c *console) finish() error {
	close(c.ending)
	err := c.pty.SetReadDeadline(time.Now().Add(drainTimeout))
	<-c.drained
	return errors.Join(err, c.pty.Close(), c.out.close())
}

// watcher is one session of a console.
type watcher struct {
	c    *console
	wake chan struct{}

	// The following are guarded by c.mu.
	at int64
	// told is whether the watcher was told who has the seat.
	told bool
}

// attach adds a watcher, who starts with what the ring holds. write asks for the
// seat of the writer; it is had when it is free or with steal.
func (c *console) attach(write, steal bool) (*watcher, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.watchers) >= watchersMax {
		return nil, errConsoleFull
	}
	w := &watcher{c: c, wake: make(chan struct{}, 1), at: c.ring.start}
	c.watchers[w] = struct{}{}
	if write && !c.ended && (c.seat == nil || steal) {
		if old := c.seat; old != nil {
			old.told = false
			old.wakeUp()
		}
		c.seat = w
	}
	w.wakeUp()
	return w, nil
}

// close ends the session. The seat becomes free.
func (w *watcher) close() {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	delete(w.c.watchers, w)
	if w.c.seat == w {
		w.c.seat = nil
	}
}

func (w *watcher) wakeUp() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// output is what a watcher is sent.
type output struct {
	data []byte
	// writer is set when the watcher has won or lost the seat.
	writer *bool
}

// next waits for output; data is in buf and valid until the next call. It returns
// io.EOF after the last byte of an ended console.
func (w *watcher) next(ctx context.Context, buf []byte) (output, error) {
	for {
		out, err := w.poll(buf)
		if err != nil || out.data != nil || out.writer != nil {
			return out, err
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return output{}, ctx.Err()
		}
	}
}

func (w *watcher) poll(buf []byte) (output, error) {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	if !w.told {
		w.told = true
		seated := w.c.seat == w
		return output{writer: &seated}, nil
	}
	n, skipped := w.c.ring.read(w.at, buf)
	if skipped > 0 {
		w.at += skipped
		return output{data: fmt.Appendf(buf[:0], "\r\n[blixard: %d bytes skipped]\r\n", skipped)}, nil
	}
	if n > 0 {
		w.at += int64(n)
		return output{data: buf[:n]}, nil
	}
	if w.c.ended {
		return output{}, io.EOF
	}
	return output{}, nil
}

// input writes to the console. Of a watcher without the seat it is dropped, as is
// what a guest that does not read leaves after inputTimeout.
func (w *watcher) input(p []byte) error {
	w.c.mu.Lock()
	seated := w.c.seat == w && !w.c.ended
	w.c.mu.Unlock()
	if !seated {
		return nil
	}
	if err := w.c.pty.SetWriteDeadline(time.Now().Add(inputTimeout)); err != nil {
		return ignoreClosed(err)
	}
	_, err := w.c.pty.Write(p)
	return ignoreClosed(err)
}

// resize sets the window size, if the watcher has the seat.
func (w *watcher) resize(columns, rows uint16) error {
	w.c.mu.Lock()
	seated := w.c.seat == w && !w.c.ended
	w.c.mu.Unlock()
	if !seated {
		return nil
	}
	return ignoreClosed(setSize(w.c.pty, columns, rows))
}

// ignoreClosed drops the errors of a pty whose process has ended or does not
// read.
func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) || isEIO(err) {
		return nil
	}
	return err
}
