package image

import (
	"context"
	"slices"
	"sync"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// Progress is told how far a piece of work is. It is not called concurrently.
type Progress = func(*blixardv1.PullImageResponse)

// flights lets callers who want the same thing share the work.
type flights struct {
	mu      sync.Mutex
	running map[string]*flight
}

type flight struct {
	cancel context.CancelFunc
	done   chan struct{}
	image  *blixardv1.Image // set before done is closed
	err    error

	mu        sync.Mutex
	waiting   int
	listeners []*Progress
}

// do runs work for key once at a time, and gives its outcome to all who asked
// meanwhile. The work is cancelled when nobody waits for it any more, and do returns
// only after it has ended.
func (f *flights) do(ctx context.Context, key string, progress Progress, work func(context.Context, Progress) (*blixardv1.Image, error)) (*blixardv1.Image, error) {
	f.mu.Lock()
	w := f.running[key]
	if w == nil {
		w = &flight{done: make(chan struct{})}
		var workCtx context.Context
		workCtx, w.cancel = context.WithCancel(context.WithoutCancel(ctx))
		if f.running == nil {
			f.running = map[string]*flight{}
		}
		f.running[key] = w
		go func() {
			w.image, w.err = work(workCtx, w.tell)
			f.mu.Lock()
			if f.running[key] == w {
				delete(f.running, key)
			}
			f.mu.Unlock()
			w.cancel()
			close(w.done)
		}()
	}
	w.waiting++ // mu of flights guards it as well
	f.mu.Unlock()
	if progress != nil {
		w.listen(&progress)
		defer w.leave(&progress)
	}
	select {
	case <-w.done:
		return w.image, w.err
	case <-ctx.Done():
	}
	f.mu.Lock()
	w.waiting--
	last := w.waiting == 0
	if last && f.running[key] == w {
		delete(f.running, key) // who comes now starts anew
	}
	f.mu.Unlock()
	if last {
		w.cancel()
		<-w.done
	}
	return nil, context.Cause(ctx)
}

func (w *flight) listen(p *Progress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listeners = append(w.listeners, p)
}

func (w *flight) leave(p *Progress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listeners = slices.DeleteFunc(w.listeners, func(q *Progress) bool { return p == q })
}

func (w *flight) tell(r *blixardv1.PullImageResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.listeners {
		(*p)(r)
	}
}
