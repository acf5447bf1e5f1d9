package cli

import (
	"fmt"
	"sync"
	"time"

	"github.com/blixard/blixard/internal/units"
)

// progressDelay is how long something may take before a person is told of it.
const progressDelay = time.Second

// progress tells on standard error what a command waits for, once it takes
// longer than progressDelay. Its methods are safe for concurrent use; stop must
// be called and waits for its goroutine.
type progress struct {
	a     *app
	begun time.Time
	done  chan struct{}
	wg    sync.WaitGroup

	mu sync.Mutex
	// text is what goes on, shown what was last written.
	text, shown string
	late        bool
}

func (a *app) progress(text string) *progress {
	p := &progress{a: a, begun: time.Now(), done: make(chan struct{}), text: text}
	p.wg.Go(func() {
		timer := time.NewTimer(progressDelay)
		defer timer.Stop()
		select {
		case <-timer.C:
			p.mu.Lock()
			defer p.mu.Unlock()
			p.late = true
			p.showLocked()
		case <-p.done:
		}
	})
	return p
}

// set says what goes on now.
func (p *progress) set(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = fmt.Sprintf(format, args...)
	if p.late {
		p.showLocked()
	}
}

func (p *progress) showLocked() {
	if p.text == p.shown {
		return
	}
	p.shown = p.text
	elapsed := units.HumanDuration(time.Since(p.begun))
	_, _ = fmt.Fprintf(p.a.stderr, "%s\n", p.a.errColor(faint, fmt.Sprintf("%s ... (%s)", clean(p.text), elapsed)))
}

func (p *progress) stop() {
	select {
	case <-p.done:
	default:
		close(p.done)
	}
	p.wg.Wait()
}
