//go:build linux

package boottest_test

import (
	"context"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/boottest"
	"github.com/blixard/blixard/guest/bundle"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// diskBytes is the size of a writable disk in these tests.
const diskBytes = 256 << 20

// refusedSettings is the one unit that may fail: Debian's settings raise the limit of process numbers above
// what our kernel, configured for small machines, counts to.
const refusedSettings = "systemd-sysctl.service\n"

// stopGrace is what a guest's init has for its own end.
const stopGrace = 60 * time.Second

func image(t testing.TB, b *bundle.Bundle) string {
	t.Helper()
	i, err := b.Image(bundle.ImageBusybox)
	if err != nil {
		t.Fatal(err)
	}
	return i.Path
}

func writable(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "writable")
	boottest.Sparse(t, path, diskBytes)
	return path
}

func config(argv ...string) guest.BootConfig {
	return guest.BootConfig{
		Hostname: "test", Argv: argv, Image: guest.Disk{Device: "/dev/vda", FSType: "ext4"},
		Writable: &guest.Disk{Device: "/dev/vdb", FSType: "ext4"},
	}
}

// A Debian with systemd boots on our own kernel to its end, runs services, and powers off when it is asked.
func TestSystemd(t *testing.T) {
	b := boottest.Bundle(t)
	k := boottest.Kernel(t, b, bundle.KernelOwn)
	m := boottest.Boot(t, boottest.Spec{Kernel: k, MemoryMiB: 512, Image: boottest.DebianRoot(t), Writable: writable(t)})
	s := m.Connect()
	cfg := config()
	cfg.Init = true
	cfg.Env = []string{"SYSTEMD_COLORS=0"}
	m.Ready(s, cfg)
	state, code := awaitSystemd(m, s)
	if state != "running" && state != "degraded" {
		t.Fatalf("systemd is %q (exit code %d)", state, code)
	}
	took, _ := m.Exec(s, "sh", "-c", "systemd-analyze; systemd-analyze blame | head -8")
	t.Logf("systemd is %s after %s\n%s", state, time.Since(m.Started).Round(time.Millisecond), took)
	failed, _ := m.Exec(s, "sh", "-c", "systemctl list-units --failed --plain --no-legend | cut -d' ' -f1")
	if want := map[string]string{"running": "", "degraded": refusedSettings}[state]; failed != want {
		why, _ := m.Exec(s, "journalctl", "--no-pager", "-b", "-p", "warning", "-n", "30")
		t.Errorf("failed are %q, want %q\n%s", failed, want, why)
	}
	if out, code := m.Exec(s, "cat", "/proc/1/comm"); code != 0 || out != "systemd\n" {
		t.Errorf("process 1 is %q", out)
	}
	service := `printf '[Service]\nType=oneshot\nExecStart=sh -c "cat /proc/self/cgroup >/run/proof"\n' >/run/systemd/system/proof.service
systemctl start proof && cat /run/proof`
	if out, code := m.Exec(s, "sh", "-c", service); code != 0 || out != "0::/system.slice/proof.service\n" {
		t.Errorf("a service, exit code %d: %q", code, out)
	}
	asked := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), boottest.Patience)
	defer cancel()
	if err := s.Stop(ctx, stopGrace); err != nil {
		t.Fatal(err)
	}
	exit := m.AwaitEvent(s, guest.EventExited).Status.Exit
	t.Logf("it powered off in %s", time.Since(asked).Round(time.Millisecond))
	if want := (guest.Exit{Reason: guest.ExitCommand, Requested: true}); *exit != want {
		t.Errorf("%+v, want %+v", *exit, want)
	}
	m.PowerOff(s)
}

// awaitSystemd waits until systemd says that its start is over. At first there is nobody to ask: then the
// answer is none of systemd's words.
func awaitSystemd(m *boottest.Machine, s *guest.Session) (state string, code int) {
	for begin := time.Now(); time.Since(begin) < boottest.Patience; {
		out, c := m.Exec(s, "systemctl", "is-system-running", "--wait")
		state, code = strings.TrimSpace(out), c
		if slices.Contains([]string{"running", "degraded", "maintenance", "stopping"}, state) {
			break
		}
	}
	return state, code
}

// A program of the guest that reboots or powers off ends the boot, and the reason is told.
func TestSystemdEndsByItself(t *testing.T) {
	b := boottest.Bundle(t)
	k := boottest.Kernel(t, b, bundle.KernelOwn)
	for command, reason := range map[string]guest.ExitReason{"reboot": guest.ExitReboot, "poweroff": guest.ExitPowerOff} {
		t.Run(command, func(t *testing.T) {
			m := boottest.Boot(t, boottest.Spec{Kernel: k, MemoryMiB: 512, Image: boottest.DebianRoot(t), Writable: writable(t)})
			s := m.Connect()
			cfg := config()
			cfg.Init = true
			m.Ready(s, cfg)
			awaitSystemd(m, s)
			if _, code := m.Exec(s, "systemctl", "--no-block", command); code != 0 {
				t.Errorf("systemctl %s: exit code %d", command, code)
			}
			if exit := m.AwaitEvent(s, guest.EventExited).Status.Exit; *exit != (guest.Exit{Reason: reason}) {
				t.Errorf("%+v", *exit)
			}
			m.PowerOff(s)
		})
	}
}

// The clock of an emulated guest runs at the host's rate although it measured nothing at its start.
func TestClock(t *testing.T) {
	const window, share = 6 * time.Second, 0.02
	b := boottest.Bundle(t)
	for _, name := range []string{bundle.KernelOwn, bundle.KernelDebian} {
		t.Run(name, func(t *testing.T) {
			k := boottest.Kernel(t, b, name)
			m := boottest.Boot(t, boottest.Spec{Kernel: k, MemoryMiB: 256, Image: image(t, b), Writable: writable(t)})
			s := m.Connect()
			m.Ready(s, config("sleep", "1000000"))
			if out, _ := m.Exec(s, "cat", "/sys/devices/system/clocksource/clocksource0/current_clocksource"); !strings.HasPrefix(out, "tsc") {
				t.Errorf("the guest's clock source is %q", out)
			}
			// The guest's sleep uses its timer, the two readings its counter: both rates are held.
			host0, guest0, took0 := readGuestClock(t, m, s)
			begin := time.Now()
			if _, code := m.Exec(s, "sleep", strconv.Itoa(int(window.Seconds()))); code != 0 {
				t.Fatal("sleep failed")
			}
			slept := time.Since(begin)
			host1, guest1, took1 := readGuestClock(t, m, s)
			host, inside := host1.Sub(host0), guest1-guest0
			// Each reading was made at an unknown moment of the call that brought it.
			slack := time.Duration(share*float64(host)) + took0 + took1
			t.Logf("host %s, guest %s, a sleep of %s took %s (calls took %s, %s)", host, inside, window, slept, took0, took1)
			if (host - inside).Abs() > slack {
				t.Errorf("the host's clock went on by %s, the guest's by %s", host, inside)
			}
			if slept < window-time.Duration(share*float64(window)) {
				t.Errorf("the guest slept %s instead of %s: its timer is too fast", slept, window)
			}
			m.Kill()
		})
	}
}

// readGuestClock reads the guest's uptime, and the host's time halfway through the shortest of some calls.
func readGuestClock(t *testing.T, m *boottest.Machine, s *guest.Session) (host time.Time, uptime, took time.Duration) {
	t.Helper()
	const tries = 8
	took = time.Hour
	for range tries {
		ctx, cancel := context.WithTimeout(t.Context(), boottest.Patience)
		begin := time.Now()
		st, err := s.Stats(ctx)
		end := time.Now()
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		if d := end.Sub(begin); d < took {
			host, uptime, took = begin.Add(d/2), time.Duration(st.UptimeMS)*time.Millisecond, d
		}
	}
	return host, uptime, took
}
