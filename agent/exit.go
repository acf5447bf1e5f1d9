package agent

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// Words of the guest's goodbye.
const (
	goodbyePowerOff = "poweroff"
	goodbyeReboot   = "reboot"
)

// classifyExit puts the end of a VMM process into the record: what it means and
// whether a start follows.
func (c *Core) classifyExit(i *instance, now time.Time) {
	if !inFlight(i.rec.GetStatus().GetState()) {
		return // classified before a crash, only the forgetting is left
	}
	exit := i.exit
	c.update(i, func(r *blixardv1.AllocationRecord) {
		s := r.Status
		s.FinishedAt = timestamppb.New(now)
		if !exit.At.IsZero() {
			s.FinishedAt = timestamppb.New(exit.At)
		}
		bye := r.GetGuestExit()
		if bye != nil && bye.GetReason() != goodbyeReboot {
			code := bye.GetCode()
			s.ExitCode = &code
		}
		switch {
		case r.Stopping:
			s.StopRung = i.rung
			if s.StopRung == "" {
				s.StopRung = "exit"
			}
			move(s, blixardv1.AllocationState_stopped, "stopped", "it was stopped (%s)", s.StopRung)
		case s.Reason == reasonUnhealthy:
			s.StopRung = i.rung
			c.restart(r, reasonUnhealthy, s.Message, now)
		case bye.GetReason() == goodbyeReboot:
			s.StopRung = "exit"
			c.again(r, "guest_reboot", "the guest rebooted", i.startedAt.Add(rebootSpacing))
		case bye != nil:
			s.StopRung = "exit"
			c.commandEnded(r, bye, now)
		case s.State == blixardv1.AllocationState_starting:
			c.bootFailed(r, exitText(exit.Code, exit.Signal, exit.Stderr), now)
		case s.Reason == "vmm_hung":
			c.restart(r, "vmm_hung", "the hypervisor did not answer and was killed", now)
		default:
			c.restart(r, "vmm_lost", exitText(exit.Code, exit.Signal, exit.Stderr), now)
		}
	})
}

// classifyLoss handles a record whose VMM is gone without a trace: the
// supervisor or the host was started anew, or the daemon died before the start.
func (c *Core) classifyLoss(i *instance, now time.Time) {
	c.update(i, func(r *blixardv1.AllocationRecord) {
		s := r.Status
		switch {
		case r.Stopping:
			s.FinishedAt = timestamppb.New(now)
			s.StopRung = "sigkill"
			move(s, blixardv1.AllocationState_stopped, "stopped", "its supervisor is gone, and the VM with it")
		case r.GetGuestExit().GetReason() == goodbyeReboot:
			c.again(r, "guest_reboot", "the guest rebooted", now)
		case r.GetGuestExit() != nil:
			code := r.GetGuestExit().GetCode()
			s.ExitCode = &code
			c.commandEnded(r, r.GetGuestExit(), now)
		case s.State == blixardv1.AllocationState_starting:
			c.again(r, "start_interrupted", "the daemon or the supervisor ended while it started", now)
		default:
			s.FinishedAt = timestamppb.New(now)
			c.lostWithHost(r, now)
		}
	})
}

// commandEnded applies the restart policy to the end of the guest's command.
func (c *Core) commandEnded(r *blixardv1.AllocationRecord, bye *blixardv1.GuestExit, now time.Time) {
	code := bye.GetCode()
	text := fmt.Sprintf("its command ended with exit code %d", code)
	if bye.GetMessage() != "" {
		text = lastLine(bye.GetMessage())
	}
	switch {
	case bye.GetReason() == goodbyePowerOff:
		// A power-off from inside is a person's wish like a stop from outside.
		move(r.Status, blixardv1.AllocationState_stopped, "powered_off", "the guest powered off")
	case r.GetAllocation().GetSpec().GetRestart().GetMode() == blixardv1.RestartMode_always:
		c.restart(r, "exited", text, now)
	case code == 0:
		move(r.Status, blixardv1.AllocationState_stopped, "exited", "%s", text)
	default:
		c.restart(r, "exited", text, now)
	}
}

// bootFailed counts a boot without ready; the kernel's own hangs are rare and
// gone with the next try, so it is tried again whatever the policy.
func (c *Core) bootFailed(r *blixardv1.AllocationRecord, text string, now time.Time) {
	r.FailedBoots++
	reason := "boot_failed"
	if r.Status.Reason == "boot_timeout" {
		reason = "boot_timeout"
		text = fmt.Sprintf("the guest was not ready within %v", c.limits.ReadyTimeout)
	}
	if r.FailedBoots >= c.limits.BootTries {
		c.fail(r, reason, fmt.Sprintf("%s, %d times in a row; see its logs", text, r.FailedBoots), now)
		return
	}
	c.again(r, reason, text, now)
}

// lostWithHost restarts what ended with its host, and was not to blame: the limit of the policy
// is for VMs that fail by themselves, and hosts may be lost often.
func (c *Core) lostWithHost(r *blixardv1.AllocationRecord, now time.Time) {
	const reason, text = "supervisor_lost", "the supervisor or the host was started anew, and the VM with it"
	p := r.GetAllocation().GetSpec().GetRestart()
	if p.GetMode() == blixardv1.RestartMode_never {
		c.fail(r, reason, text, now)
		return
	}
	c.again(r, reason, text, now.Add(backoff(p, 1)))
}

// restart applies the policy to an unwanted end.
func (c *Core) restart(r *blixardv1.AllocationRecord, reason, text string, now time.Time) {
	p := r.GetAllocation().GetSpec().GetRestart()
	if p.GetMode() == blixardv1.RestartMode_never {
		c.fail(r, reason, text, now)
		return
	}
	var recent []*timestamppb.Timestamp
	for _, t := range r.RestartTimes {
		if now.Sub(t.AsTime()) < restartWindow {
			recent = append(recent, t)
		}
	}
	limit := p.GetMaxRestarts()
	if limit == 0 {
		limit = defaultMaxRestarts
	}
	if len(recent) >= int(limit) {
		r.RestartTimes = recent
		c.fail(r, "restart_limit", fmt.Sprintf("%s; %d restarts within %v are the limit", text, limit, restartWindow), now)
		return
	}
	r.RestartTimes = append(recent, timestamppb.New(now))
	c.again(r, reason, text, now.Add(backoff(p, len(r.RestartTimes))))
}

// backoff doubles with every further restart of the window.
func backoff(p *blixardv1.RestartPolicy, n int) time.Duration {
	d := defaultBackoff
	if p.GetBackoff() != nil {
		d = p.GetBackoff().AsDuration()
	}
	for range n - 1 {
		if d *= 2; d >= maxBackoff {
			return maxBackoff
		}
	}
	return d
}

func exitText(code, signal int, stderr string) string {
	s := fmt.Sprintf("the hypervisor ended with exit code %d", code)
	if signal != 0 {
		s = fmt.Sprintf("the hypervisor was ended by signal %d", signal)
	}
	if stderr != "" {
		s += ": " + lastLine(stderr)
	}
	return s
}

// lastLine of what the VMM wrote, bounded, since it goes into the state.
func lastLine(s string) string {
	const bytesMax = 300
	lines := []byte(s)
	for len(lines) > 0 && (lines[len(lines)-1] == '\n' || lines[len(lines)-1] == '\r') {
		lines = lines[:len(lines)-1]
	}
	for k := len(lines) - 1; k >= 0; k-- {
		if lines[k] == '\n' {
			lines = lines[k+1:]
			break
		}
	}
	if len(lines) > bytesMax {
		lines = lines[:bytesMax]
	}
	return strings.ToValidUTF8(string(lines), "?")
}
