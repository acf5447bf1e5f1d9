package guest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/pid1"
	"github.com/blixard/blixard/guest/wire"
	"github.com/blixard/blixard/internal/problem"
)

var sleep = []string{"sleep", "1000"}

func TestBootOfACommand(t *testing.T) {
	var console bytes.Buffer
	w := newWorld(t, pid1.LocalConfig{Console: &console})
	s := w.session(t)
	first := <-s.Events()
	if first.Kind != guest.EventStatus || first.Status.Phase != guest.PhaseWaitingConfig || first.Status.BootID != "boot-1" || s.BootID() != "boot-1" {
		t.Fatalf("first event %+v, boot id %q", first, s.BootID())
	}
	st := configure(t, s, guest.BootConfig{Argv: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}})
	if st.ConfigUS <= 0 {
		t.Errorf("state after Configure: %+v", st)
	}
	ready := awaitEvent(t, s, guest.EventReady)
	if ready.Status.ReadyUS <= 0 || ready.Status.InitStartUS <= 0 || ready.Status.KernelRelease == "" {
		t.Errorf("ready: %+v", ready)
	}
	exited := awaitEvent(t, s, guest.EventExited)
	want := guest.Exit{Reason: guest.ExitCommand, Code: 3}
	if exited.Status.Phase != guest.PhaseExited || *exited.Status.Exit != want {
		t.Errorf("exited: %+v %+v", exited.Status, exited.Status.Exit)
	}
	if err := s.AckExit(testContext(t)); err != nil {
		t.Errorf("AckExit: %v", err)
	}
	<-w.local.Ended()
	<-s.Done()
	if !problem.HasCode(s.Err(), guest.CodeSessionOver) {
		t.Errorf("Err: %v", s.Err())
	}
	_ = w.local.Close()
	if got := console.String(); got != "out\nerr\n" && got != "err\nout\n" {
		t.Errorf("console %q", got)
	}
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/plain", []byte("no program"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cfg  guest.BootConfig
		want guest.Exit
	}{
		"killed":         {guest.BootConfig{Argv: []string{"sh", "-c", "kill -9 $$"}}, guest.Exit{Code: 137, Signal: 9}},
		"not found":      {guest.BootConfig{Argv: []string{"no-such-program"}}, guest.Exit{Code: 127, Message: "no-such-program: not found in PATH"}},
		"no such file":   {guest.BootConfig{Argv: []string{"/no/such"}}, guest.Exit{Code: 127, Message: "start /no/such: no such file or directory"}},
		"not executable": {guest.BootConfig{Argv: []string{"plain"}, Env: []string{"PATH=" + dir}}, guest.Exit{Code: 126, Message: "plain: not executable"}},
		"denied":         {guest.BootConfig{Argv: []string{dir + "/plain"}}, guest.Exit{Code: 126, Message: "start " + dir + "/plain: permission denied"}},
		"unknown user":   {guest.BootConfig{Argv: sleep, User: "nobody-here"}, guest.Exit{Code: 126, Message: `no user "nobody-here" in /etc/passwd of the image`}},
		"unknown group":  {guest.BootConfig{Argv: sleep, User: "0:none-such"}, guest.Exit{Code: 126, Message: `no group "none-such" in /etc/group of the image`}},
	} {
		t.Run(name, func(t *testing.T) {
			c.want.Reason = guest.ExitCommand
			s := newWorld(t, pid1.LocalConfig{}).session(t)
			configure(t, s, c.cfg)
			if got := awaitEvent(t, s, guest.EventExited).Status.Exit; *got != c.want {
				t.Errorf("%+v, want %+v", *got, c.want)
			}
		})
	}
}

func TestBootFailed(t *testing.T) {
	w := newWorld(t, pid1.LocalConfig{BuildRoot: func(wire.BootConfig) error { return errors.New("no such drive") }})
	s := w.session(t)
	configure(t, s, guest.BootConfig{Argv: sleep})
	got := awaitEvent(t, s, guest.EventExited).Status.Exit
	want := guest.Exit{Reason: guest.ExitBootFailed, Code: 125, Message: "build the root: no such drive"}
	if *got != want {
		t.Errorf("%+v, want %+v", *got, want)
	}
}

func TestConfigureIsIdempotent(t *testing.T) {
	w, s := running(t, guest.BootConfig{Argv: sleep, Hostname: "a"})
	again := w.session(t)
	<-s.Done() // the port serves the newest host
	first := <-again.Events()
	if first.Status.Phase != guest.PhaseRunning || first.Status.ReadyUS <= 0 {
		t.Errorf("first event of the second host: %+v", first)
	}
	if st := configure(t, again, guest.BootConfig{Argv: sleep, Hostname: "a"}); st.ReadyUS != first.Status.ReadyUS {
		t.Errorf("the same config again: %+v", st)
	}
	_, err := again.Configure(testContext(t), guest.BootConfig{Argv: sleep, Image: guest.Disk{Device: "x", FSType: "y"}})
	if !problem.HasCode(err, "guest.configured") || !problem.Is(err, problem.Conflict) {
		t.Errorf("another config: %v", err)
	}
	if st, err := again.Status(testContext(t)); err != nil || st.Phase != guest.PhaseRunning {
		t.Errorf("Status: %+v, %v", st, err)
	}
}

// A guest that has forgotten the contents of its configuration still tells it from others.
func TestConfigureAfterReady(t *testing.T) {
	cfg := guest.BootConfig{
		Argv: sleep, Files: []guest.File{{Path: "/none/file", Content: []byte("1")}}, Secrets: []guest.File{{Path: "/none/secret", Content: []byte("2")}},
		UserData: "3", MetaData: "4",
	}
	built := make(chan guest.BootConfig, 1)
	s := newWorld(t, pid1.LocalConfig{BuildRoot: func(c guest.BootConfig) error {
		built <- c
		return nil
	}}).session(t)
	configure(t, s, cfg)
	awaitEvent(t, s, guest.EventReady)
	if c := <-built; len(c.Files) != 1 || string(c.Secrets[0].Content) != "2" || c.UserData != "3" {
		t.Errorf("the root was built of %+v", c)
	}
	for range 2 {
		configure(t, s, cfg)
	}
	for name, change := range map[string]func(*guest.BootConfig){
		"secret":    func(c *guest.BootConfig) { c.Secrets = []guest.File{{Path: "/none/secret", Content: []byte("x")}} },
		"user data": func(c *guest.BootConfig) { c.UserData = "" },
	} {
		other := cfg
		change(&other)
		other.Image = guest.Disk{Device: "none", FSType: "none"}
		if _, err := s.Configure(testContext(t), other); !problem.HasCode(err, "guest.configured") {
			t.Errorf("another %s: %v", name, err)
		}
	}
}

const mac = "52:54:00:12:34:56"

func TestConfigureRefuses(t *testing.T) {
	s := newWorld(t, pid1.LocalConfig{}).session(t)
	image := guest.Disk{Device: "d", FSType: "f"}
	for name, cfg := range map[string]guest.BootConfig{
		"no command":  {Image: image},
		"no image":    {Argv: sleep},
		"no fs type":  {Argv: sleep, Image: image, Writable: &guest.Disk{Device: "x"}},
		"stop signal": {Argv: sleep, Image: image, StopSignal: 65},
		"mac":         {Argv: sleep, Image: image, Interfaces: []guest.Interface{{MAC: "52:54:00:12:34"}}},
		"address":     {Argv: sleep, Image: image, Interfaces: []guest.Interface{{MAC: mac, Addresses: []string{"10.0.0.1"}}}},
		"zone":        {Argv: sleep, Image: image, Interfaces: []guest.Interface{{MAC: mac, Addresses: []string{"fe80::1%eth0/64"}}}},
		"gateway":     {Argv: sleep, Image: image, Interfaces: []guest.Interface{{MAC: mac, GatewayIPv4: "fd00::1"}}},
		"gateway 6":   {Argv: sleep, Image: image, Interfaces: []guest.Interface{{MAC: mac, GatewayIPv6: "10.0.0.1"}}},
		"server":      {Argv: sleep, Image: image, DNS: []string{"10.0.0.1\nnameserver 10.0.0.2"}},
		"volume":      {Argv: sleep, Image: image, Mounts: []guest.Mount{{Path: "/data"}}},
		"volume path": {Argv: sleep, Image: image, Mounts: []guest.Mount{{Path: "/", Disk: image}}},
		"file":        {Argv: sleep, Image: image, Files: []guest.File{{Path: "etc/x"}}},
		"dots":        {Argv: sleep, Image: image, Files: []guest.File{{Path: "/etc/../x"}}},
		"secret":      {Argv: sleep, Image: image, Secrets: []guest.File{{Path: "/run/secrets/"}}},
		"key":         {Argv: sleep, Image: image, SSHKeys: []string{"one\ntwo"}},
	} {
		if _, err := s.Configure(testContext(t), cfg); !problem.HasCode(err, "guest.config") || !problem.Is(err, problem.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	big := guest.BootConfig{Argv: sleep, Image: image, Files: []guest.File{{Path: "/f", Content: make([]byte, wire.MaxConfigure)}}}
	if _, err := s.Configure(testContext(t), big); !problem.HasCode(err, guest.CodeTooLarge) {
		t.Errorf("a file of 6 MiB: %v", err)
	}
	if st, err := s.Status(testContext(t)); err != nil || st.Phase != guest.PhaseWaitingConfig {
		t.Errorf("afterwards: %+v, %v", st, err)
	}
	if err := s.AckExit(testContext(t)); !problem.HasCode(err, "guest.not_exited") {
		t.Errorf("AckExit before the exit: %v", err)
	}
	if _, err := s.Exec(testContext(t), guest.ExecRequest{Argv: sleep}); !problem.HasCode(err, "guest.not_running") {
		t.Errorf("Exec before the command: %v", err)
	}
	if _, err := s.Attach(testContext(t), guest.AttachRequest{}); !problem.HasCode(err, "guest.not_running") {
		t.Errorf("Attach before the command: %v", err)
	}
}

func TestEnds(t *testing.T) {
	stubborn := []string{"sh", "-c", "trap '' TERM; echo up; while :; do sleep 1000 & wait; done"}
	polite := []string{"sh", "-c", "trap 'exit 5' TERM; echo up; while :; do sleep 1000 & wait; done"}
	for name, c := range map[string]struct {
		argv []string
		ask  func(*testing.T, *world, *guest.Session)
		want guest.Exit
	}{
		"stop": {
			polite, func(t *testing.T, w *world, s *guest.Session) { check(t, s.Stop(testContext(t), time.Hour)) },
			guest.Exit{Reason: guest.ExitCommand, Code: 5, Requested: true},
		},
		"stop without grace": {
			stubborn, func(t *testing.T, w *world, s *guest.Session) { check(t, s.Stop(testContext(t), 0)) },
			guest.Exit{Reason: guest.ExitCommand, Code: 137, Signal: 9, Requested: true},
		},
		"grace made shorter": {stubborn, func(t *testing.T, w *world, s *guest.Session) {
			check(t, s.Stop(testContext(t), time.Hour))
			check(t, s.Stop(testContext(t), 2*time.Hour))
			check(t, s.Reboot(testContext(t), time.Millisecond))
		}, guest.Exit{Reason: guest.ExitCommand, Code: 137, Signal: 9, Requested: true}},
		"reboot": {
			polite, func(t *testing.T, w *world, s *guest.Session) { check(t, s.Reboot(testContext(t), time.Hour)) },
			guest.Exit{Reason: guest.ExitReboot, Code: 5, Requested: true},
		},
		"guest reboots": {
			polite, func(t *testing.T, w *world, s *guest.Session) { w.local.Signal(syscall.SIGTERM) },
			guest.Exit{Reason: guest.ExitReboot, Code: 5},
		},
		"guest powers off": {
			polite, func(t *testing.T, w *world, s *guest.Session) { w.local.Signal(syscall.SIGUSR2) },
			guest.Exit{Reason: guest.ExitPowerOff, Code: 5},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, s := running(t, guest.BootConfig{Argv: c.argv})
			awaitOutput(t, s, "up\n")
			c.ask(t, w, s)
			if got := awaitEvent(t, s, guest.EventExited).Status.Exit; *got != c.want {
				t.Errorf("%+v, want %+v", *got, c.want)
			}
		})
	}
	t.Run("before the configuration", func(t *testing.T) {
		s := newWorld(t, pid1.LocalConfig{}).session(t)
		check(t, s.Stop(testContext(t), time.Hour))
		if got := awaitEvent(t, s, guest.EventExited).Status.Exit; *got != (guest.Exit{Reason: guest.ExitCommand, Requested: true}) {
			t.Errorf("%+v", *got)
		}
	})
}

// lateConn holds the news that an acknowledgement was written back until it is closed.
type lateConn struct {
	net.Conn
	closed chan struct{}
	once   sync.Once
}

func (c *lateConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if bytes.Contains(p, []byte(wire.MethodAckExit)) {
		<-c.closed
	}
	return n, err
}

func (c *lateConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// A guest may end its machine before the host knows that its acknowledgement was sent.
func TestAckExitIsOvertaken(t *testing.T) {
	w := newWorld(t, pid1.LocalConfig{})
	conn := &lateConn{Conn: w.connect(-1), closed: make(chan struct{})}
	s, err := guest.Connect(testContext(t), conn, w.token, guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	configure(t, s, guest.BootConfig{Argv: []string{"true"}})
	awaitEvent(t, s, guest.EventExited)
	if err := s.AckExit(testContext(t)); err != nil {
		t.Errorf("AckExit: %v", err)
	}
	<-w.local.Ended()
}

// What a command leaves running in its process group ends with it.
func TestCommandsLeaveNothing(t *testing.T) {
	_, s := running(t, guest.BootConfig{Argv: sleep})
	st, err := s.Exec(testContext(t), guest.ExecRequest{Argv: []string{"sh", "-c", "sleep 1000 >&- 2>&- & echo $!; exit 7"}})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	f, err := st.Recv()
	if err != nil {
		t.Fatal(err)
	}
	left, err := strconv.Atoi(strings.TrimSpace(string(f.Data)))
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := st.Wait(testContext(t)); err != nil || exit.Code != 7 {
		t.Errorf("%+v, %v", exit, err)
	}
	for begin := time.Now(); runs(left); time.Sleep(time.Millisecond) {
		if time.Since(begin) > patience {
			t.Fatalf("process %d goes on", left)
		}
	}
}

// runs reports whether a process is there and is no zombie, which waits for whoever is process 1 here.
func runs(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(state, "Z")
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// awaitOutput attaches until the main command has written want.
func awaitOutput(t *testing.T, s *guest.Session, want string) {
	t.Helper()
	st, err := s.Attach(testContext(t), guest.AttachRequest{Replay: guest.ReplayBytes})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	got := ""
	for !strings.Contains(got, want) {
		f, err := st.Recv()
		if err != nil || f.Kind == guest.Ended {
			t.Fatalf("output %q, then %+v, %v", got, f, err)
		}
		got += string(f.Data)
	}
}

func TestStatsAndPing(t *testing.T) {
	s := newWorld(t, pid1.LocalConfig{}).session(t)
	st, err := s.Stats(testContext(t))
	if err != nil || st.MemTotal == 0 || st.MemAvailable > st.MemTotal || st.Processes == 0 || st.CPUs == 0 || st.UptimeMS == 0 || st.RootTotal == 0 || st.CPUBusyMS == 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if d, err := s.Ping(testContext(t)); err != nil || d <= 0 {
		t.Errorf("%v, %v", d, err)
	}
}

func TestConnectFails(t *testing.T) {
	w := newWorld(t, pid1.LocalConfig{})
	ctx, cancel := context.WithCancel(testContext(t))
	conn := w.connect(-1)
	done := make(chan error)
	go func() {
		_, err := guest.Connect(ctx, conn, guest.NewToken(), guest.Options{})
		done <- err
	}()
	for w.sent() == 0 { // the hello for another guest is on its way
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; !problem.HasCode(err, guest.CodeConnect) || !problem.Is(err, problem.Unavailable) {
		t.Errorf("wrong token: %v", err)
	}
	if _, err := conn.Write([]byte("x")); err == nil {
		t.Error("the connection was left open")
	}
	past, cancelPast := context.WithDeadline(context.Background(), time.Unix(1, 0))
	defer cancelPast()
	if _, err := guest.Connect(past, w.connect(-1), w.token, guest.Options{}); !problem.HasCode(err, guest.CodeConnect) {
		t.Errorf("deadline gone: %v", err)
	}
	w.session(t) // the guest is none the worse for it
}

func TestVersions(t *testing.T) {
	ours, theirs := socketPair(t)
	done := make(chan error)
	go func() {
		_, err := guest.Connect(testContext(t), ours, guest.NewToken(), guest.Options{})
		done <- err
	}()
	buf := make([]byte, 512)
	n, err := theirs.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(buf[:n]))
	reply := "\xfb\x02blixard-guest 9.1 " + fields[len(fields)-1] + " boot\n"
	if _, err := io.WriteString(theirs, reply); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !problem.HasCode(err, guest.CodeVersion) || !strings.Contains(err.Error(), "9.1") {
		t.Errorf("a guest of version 9.1: %v", err)
	}
	_ = theirs.Close()

	// A host of another major gets the guest's version and no session.
	w := newWorld(t, pid1.LocalConfig{})
	host := w.connect(-1)
	defer host.Close()
	hello := wire.Hello{Major: 9, Token: w.token}
	if _, err := host.Write(hello.Append(nil)); err != nil {
		t.Fatal(err)
	}
	n, err = host.Read(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "\xfb\x02blixard-guest 1.1 ") {
		t.Errorf("answer %q, %v", buf[:n], err)
	}
	w.session(t)
}
