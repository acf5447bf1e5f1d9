package agent

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/internal/problem"
)

// Defaults of a check.
const (
	healthInterval = 10 * time.Second
	healthTimeout  = 5 * time.Second
	healthRetries  = 3
	// startInterval is how often a VM is checked until its first success, if its
	// interval is longer, so that a VM that is up soon is known to be.
	startInterval = time.Second
	// healthTextMax bounds what a failed check says, in bytes.
	healthTextMax = 200
)

// checker decides what results of a check mean. It is pure, and for one boot.
type checker struct {
	check   *blixardv1.HealthCheck
	started time.Time
	health  blixardv1.Health_Enum
	// failures in a row that count.
	failures uint32
}

func newChecker(check *blixardv1.HealthCheck, started time.Time) *checker {
	return &checker{check: check, started: started, health: blixardv1.Health_starting}
}

func durationOr(d *durationpb.Duration, or time.Duration) time.Duration {
	if d == nil {
		return or
	}
	return d.AsDuration()
}

// pause before the next check.
func (c *checker) pause() time.Duration {
	d := durationOr(c.check.GetInterval(), healthInterval)
	if c.health == blixardv1.Health_starting {
		return min(d, startInterval)
	}
	return d
}

func (c *checker) timeout() time.Duration { return durationOr(c.check.GetTimeout(), healthTimeout) }

// result takes how a check ended, and gives the health. Failures within the start
// period do not count, until the first success.
func (c *checker) result(ok bool, now time.Time) blixardv1.Health_Enum {
	retries := c.check.GetRetries()
	if retries == 0 {
		retries = healthRetries
	}
	switch {
	case ok:
		c.failures, c.health = 0, blixardv1.Health_healthy
	case c.health == blixardv1.Health_starting && now.Before(c.started.Add(durationOr(c.check.GetStartPeriod(), 0))):
	default:
		if c.failures++; c.failures >= retries {
			c.health = blixardv1.Health_unhealthy
		}
	}
	return c.health
}

// watchHealth checks a VM for as long as it is followed, by the newest check.
func (a *Agent) watchHealth(ctx context.Context, f *follower) {
	var c *checker
	var due <-chan time.Time
	told, toldText := blixardv1.Health_unspecified, ""
	for {
		select {
		case <-ctx.Done():
			return
		case check := <-f.checks:
			if c != nil && proto.Equal(check, c.check) || c == nil && check == nil {
				continue
			}
			c, due, told, toldText = nil, nil, blixardv1.Health_unspecified, ""
			if check != nil {
				c = newChecker(check, time.Now())
				due = time.After(c.pause())
			}
			continue
		case <-due:
		}
		due = time.After(c.pause())
		if f.paused.Load() {
			continue
		}
		err := within(ctx, c.timeout(), func(ctx context.Context) error { return probe(ctx, f.session(), c.check, c.timeout()) })
		if ctx.Err() != nil {
			return
		}
		text := ""
		if err != nil {
			text = err.Error()
			text = lastLine(text[:min(len(text), healthTextMax)])
		}
		health := c.result(err == nil, time.Now())
		due = time.After(c.pause())
		if health == told && text == toldText {
			continue
		}
		told, toldText = health, text
		a.post(ctx, func(time.Time) { a.core.Health(f.id, f.boots, health, text) })
	}
}

// probe makes one check; the error says what is wrong.
func probe(ctx context.Context, s *guest.Session, check *blixardv1.HealthCheck, timeout time.Duration) error {
	if s == nil {
		return problem.New(problem.Unavailable, "guest.no_session", "the guest's agent does not answer")
	}
	switch p := check.GetProbe().(type) {
	case *blixardv1.HealthCheck_Exec:
		return probeExec(ctx, s, p.Exec.GetCommand())
	case *blixardv1.HealthCheck_Http:
		path := p.Http.GetPath()
		if path == "" {
			path = "/"
		}
		return probePort(ctx, s, guest.Probe{Port: uint16(p.Http.GetPort()), Path: path, TimeoutMS: uint32(timeout.Milliseconds())})
	case *blixardv1.HealthCheck_TcpPort:
		return probePort(ctx, s, guest.Probe{Port: uint16(p.TcpPort), TimeoutMS: uint32(timeout.Milliseconds())})
	}
	_, err := s.Ping(ctx)
	return err
}

func probePort(ctx context.Context, s *guest.Session, p guest.Probe) error {
	r, err := s.Probe(ctx, p)
	if err == nil && !r.OK {
		err = fmt.Errorf("%s", r.Message)
	}
	return err
}

// probeExec runs a command, whose output is dropped but for the end of it.
func probeExec(ctx context.Context, s *guest.Session, command []string) error {
	st, err := s.Exec(ctx, guest.ExecRequest{Argv: command})
	if err != nil {
		return err
	}
	defer st.Close()
	last := ""
	for {
		f, err := st.Recv()
		if err != nil {
			return err
		}
		switch f.Kind {
		case guest.Ended:
			if f.Exit.Code == 0 {
				return nil
			}
			return fmt.Errorf("exit code %d: %s", f.Exit.Code, last)
		case guest.Stdout, guest.Stderr:
			if text := lastLine(string(f.Data)); text != "" {
				last = text
			}
		}
	}
}
