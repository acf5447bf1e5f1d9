//go:build linux

package boottest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/bundle"
	"github.com/blixard/blixard/guest/kernel"
)

// Patience bounds every wait for a machine: an emulated boot takes a second, and the host may be busy.
const Patience = 90 * time.Second

const (
	// agentFD and qmpFD are QEMU's ends of the sockets, as the product hands them over too.
	agentFD = 3
	qmpFD   = 4
	// consoleBytesMax is how much of a console is kept for a failed test.
	consoleBytesMax = 64 << 10
)

// Bundle opens the guest bundle that BLIXARD_TEST_BUNDLE names, or that `make bundle` left in bin/bundle of
// the checkout.
func Bundle(t testing.TB) *bundle.Bundle {
	t.Helper()
	if named := os.Getenv("BLIXARD_TEST_BUNDLE"); named != "" {
		b, err := bundle.Open(named)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == filepath.Dir(dir) {
			t.Fatal("no go.mod above the test")
		}
		dir = filepath.Dir(dir)
	}
	b, err := bundle.Open(filepath.Join(dir, "bin", "bundle"))
	if err != nil {
		t.Fatalf("%v: run `make bundle`", err)
	}
	return b
}

// Kernel gives a kernel of the bundle.
func Kernel(t testing.TB, b *bundle.Bundle, name string) bundle.Kernel {
	t.Helper()
	k, err := b.Kernel(name)
	if err != nil {
		t.Fatalf("%v: run `make kernel`", err)
	}
	return k
}

// Spec describes an emulated machine with the product's devices.
type Spec struct {
	Kernel    bundle.Kernel
	MemoryMiB int
	// Cmdline replaces the kernel's command line for emulation; empty takes that.
	Cmdline string
	// Image is attached read-only as /dev/vda, Writable as /dev/vdb if it is not empty.
	Image, Writable string
	// Volumes are the paths of further drives, with the serials "volume0", "volume1" and so on.
	Volumes []string
	// MAC, when it is not empty, is that of a NIC in a network of QEMU's own: the host is UserGateway there.
	MAC string
	// Machine holds further machine options, such as "pic=off".
	Machine []string
	// NoGuestControl leaves out the disks, the agent's channel and its token: init then says on the console
	// that nobody can reach it.
	NoGuestControl bool
}

// Addresses of QEMU's own network.
const (
	UserAddress = "10.0.2.15/24"
	UserGateway = "10.0.2.2"
	UserDNS     = "10.0.2.3"
)

// Argv is QEMU's command line for the spec and token.
func (s Spec) Argv(token guest.Token) []string {
	line := s.Cmdline
	if line == "" {
		line = s.Kernel.CommandLineTCG(kernel.HostTSCKHz())
	}
	if !s.NoGuestControl {
		line += " " + token.KernelArg()
	}
	machine := "microvm,accel=tcg,acpi=" + onOff(s.Kernel.ACPI) + ",isa-serial=" + onOff(s.Kernel.Console == bundle.ConsoleSerial) +
		",mem-merge=off,dump-guest-core=off"
	for _, o := range s.Machine {
		machine += "," + o
	}
	a := []string{
		"qemu-system-x86_64", "-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-machine", machine, "-cpu", "max",
		"-smp", "cpus=1", "-m", "size=" + strconv.Itoa(s.MemoryMiB) + "M", "-kernel", s.Kernel.Path,
		"-append", line, "-initrd", s.Kernel.InitramfsPath,
		"-chardev", "socket,id=qmp,server=on,wait=off,fd=" + strconv.Itoa(qmpFD), "-mon", "chardev=qmp,mode=control",
		"-chardev", "pipe,id=console,path=/proc/self/fd/0",
	}
	if s.Kernel.Console == bundle.ConsoleSerial {
		a = append(a, "-serial", "chardev:console")
	}
	for i, path := range []string{s.Image, s.Writable} {
		if path == "" || s.NoGuestControl {
			continue
		}
		id := "disk" + strconv.Itoa(i)
		a = append(a, "-blockdev", "driver=raw,node-name="+id+",read-only="+onOff(i == 0)+",discard=unmap,file.driver=file,file.filename="+path,
			"-device", "virtio-blk-device,drive="+id)
	}
	for i, path := range s.Volumes {
		id := "volume" + strconv.Itoa(i)
		a = append(a, "-blockdev", "driver=raw,node-name="+id+",discard=unmap,file.driver=file,file.filename="+path,
			"-device", "virtio-blk-device,id="+id+",drive="+id+",serial="+id)
	}
	if s.MAC != "" {
		a = append(a, "-netdev", "user,id=net", "-device", "virtio-net-device,netdev=net,mac="+s.MAC)
	}
	if !s.NoGuestControl || s.Kernel.Console == bundle.ConsoleVirtio {
		a = append(a, "-device", "virtio-serial-device,max_ports=3")
	}
	a = append(a, "-chardev", "socket,id=agent,server=on,wait=off,fd="+strconv.Itoa(agentFD))
	if !s.NoGuestControl {
		a = append(a, "-device", "virtserialport,chardev=agent,nr=1,name="+guest.PortName)
	}
	if s.Kernel.Console == bundle.ConsoleVirtio {
		a = append(a, "-device", "virtconsole,chardev=console,nr=0")
	}
	return a
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// Machine is a running QEMU.
type Machine struct {
	t testing.TB
	// Started is just before the exec of QEMU.
	Started time.Time
	token   guest.Token
	agent   string // path of the agent's socket
	qmp     string // path of the monitor's socket
	cmd     *exec.Cmd
	pty     *os.File
	ended   chan struct{} // closed when QEMU has ended and its console was read
	wg      sync.WaitGroup

	mu      sync.Mutex
	console bytes.Buffer
	more    chan struct{} // closed and replaced when the console shows more
}

// Boot starts a machine for the spec. It is killed at the end of the test if it still runs.
func Boot(t testing.TB, s Spec) *Machine {
	t.Helper()
	if to := os.Getenv("BLIXARD_TEST_GUEST_COVERDIR"); to != "" && s.Writable != "" {
		t.Cleanup(func() { takeCounters(t, s.Writable, to) }) // after the machine's own end
	}
	token := guest.NewToken()
	return Run(t, s.Argv(token), token)
}

// takeCounters fetches from a disk which statements of a blixard-guest built with -cover ran, if the guest had
// the time to write that.
func takeCounters(t testing.TB, disk, to string) {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("debugfs", "-R", "rdump /upper/blixard-cover "+dir, disk).CombinedOutput(); err != nil {
		t.Errorf("debugfs: %v\n%s", err, out)
	}
	files, err := filepath.Glob(filepath.Join(dir, "blixard-cover", "cov*"))
	if err != nil {
		t.Error(err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(to, filepath.Base(file)), raw, 0o600)
		}
		if err != nil {
			t.Error(err)
		}
	}
}

// Run starts QEMU by a command line that takes the console as standard input and the listening sockets
// of the agent and of QMP as descriptors 3 and 4.
func Run(t testing.TB, argv []string, token guest.Token) *Machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "boot")
	if err != nil {
		t.Fatal(err)
	}
	m := &Machine{t: t, token: token, agent: filepath.Join(dir, "agent"), qmp: filepath.Join(dir, "qmp"), ended: make(chan struct{}), more: make(chan struct{})}
	m.cmd = exec.Command(argv[0], argv[1:]...)
	var errs bytes.Buffer
	m.cmd.Stdout, m.cmd.Stderr = &errs, &errs
	agent, qmp := listen(t, m.agent), listen(t, m.qmp)
	m.cmd.ExtraFiles = []*os.File{agent, qmp}
	var slave *os.File
	m.pty, slave = openPTY(t)
	m.cmd.Stdin = slave
	m.Started = time.Now()
	err = m.cmd.Start()
	for _, f := range []*os.File{agent, qmp, slave} {
		_ = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	m.wg.Go(m.readConsole)
	go func() {
		_ = m.cmd.Wait()
		m.wg.Wait()
		close(m.ended)
	}()
	t.Cleanup(func() {
		how := "ran to the end of the test"
		select {
		case <-m.ended:
			how = "ended before, " + m.cmd.ProcessState.String()
		default:
		}
		_ = m.cmd.Process.Kill()
		<-m.ended
		_ = m.pty.Close()
		_ = os.RemoveAll(dir)
		if t.Failed() {
			t.Logf("QEMU %s, and said %q; the console:\n%s", how, errs.String(), m.Console())
		}
	})
	return m
}

func listen(t testing.TB, path string) *os.File {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// openPTY makes a raw pseudo terminal.
func openPTY(t testing.TB) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	raw, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ICANON | unix.ISIG
	if err := unix.IoctlSetTermios(int(slave.Fd()), unix.TCSETS, raw); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// readConsole reads to the end that a pseudo terminal has when nobody holds its other side.
func (m *Machine) readConsole() {
	buf := make([]byte, 4<<10)
	for {
		n, err := m.pty.Read(buf)
		m.mu.Lock()
		if m.console.Len() < consoleBytesMax {
			m.console.Write(buf[:n])
		}
		close(m.more)
		m.more = make(chan struct{})
		m.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// Console is what the machine's console showed so far.
func (m *Machine) Console() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.console.String()
}

// AwaitConsole waits until the console has shown want.
func (m *Machine) AwaitConsole(want string) {
	m.t.Helper()
	limit := time.After(Patience)
	for {
		m.mu.Lock()
		found, more := strings.Contains(m.console.String(), want), m.more
		m.mu.Unlock()
		if found {
			return
		}
		select {
		case <-more:
		case <-m.ended:
			m.t.Fatalf("the machine ended before its console showed %q", want)
		case <-limit:
			m.t.Fatalf("the console does not show %q", want)
		}
	}
}

// PID of QEMU.
func (m *Machine) PID() int { return m.cmd.Process.Pid }

// AwaitEnd waits until QEMU has ended.
func (m *Machine) AwaitEnd() {
	m.t.Helper()
	select {
	case <-m.ended:
	case <-time.After(Patience):
		m.t.Fatal("the machine does not end")
	}
}

// Kill ends QEMU at once.
func (m *Machine) Kill() {
	_ = m.cmd.Process.Kill()
	<-m.ended
}

// Connect gives a session with the guest, which is closed with the test.
func (m *Machine) Connect() *guest.Session {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", m.agent)
	if err != nil {
		m.t.Fatal(err)
	}
	s, err := guest.Connect(ctx, conn, m.token, guest.Options{})
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { _ = s.Close() })
	return s
}

// Ready configures the guest and gives its state once its command runs.
func (m *Machine) Ready(s *guest.Session, cfg guest.BootConfig) guest.Status {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if _, err := s.Configure(ctx, cfg); err != nil {
		m.t.Fatal(err)
	}
	return m.AwaitEvent(s, guest.EventReady).Status
}

// AwaitEvent reads the session's events up to one of the kind.
func (m *Machine) AwaitEvent(s *guest.Session, kind guest.EventKind) guest.Event {
	m.t.Helper()
	limit := time.After(Patience)
	for {
		select {
		case e, ok := <-s.Events():
			if !ok {
				m.t.Fatalf("the session ended before the event %s: %v", kind, s.Err())
			}
			if e.Status.Exit != nil && kind != guest.EventExited {
				m.t.Fatalf("the guest exited before the event %s: %+v", kind, e.Status.Exit)
			}
			// The first event tells what has been before the session.
			been := e.Status.ReadyUS > 0
			if kind == guest.EventExited {
				been = e.Status.Exit != nil
			}
			if e.Kind == kind || e.Kind == guest.EventStatus && been {
				return e
			}
		case <-limit:
			m.t.Fatalf("no event %s", kind)
		}
	}
}

// PowerOff acknowledges an exit and waits for QEMU's end.
func (m *Machine) PowerOff(s *guest.Session) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := s.AckExit(ctx); err != nil {
		m.t.Fatal(err)
	}
	m.AwaitEnd()
}

// Exec runs a command in the guest to its end and gives what it wrote, errors included, and its exit code.
func (m *Machine) Exec(s *guest.Session, argv ...string) (string, int) {
	m.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	st, err := s.Exec(ctx, guest.ExecRequest{Argv: argv})
	if err != nil {
		m.t.Fatal(err)
	}
	defer st.Close()
	var out strings.Builder
	for {
		f, err := st.Recv()
		if err != nil {
			m.t.Fatal(fmt.Errorf("%v: %w", argv, err))
		}
		if f.Kind == guest.Ended {
			return out.String(), f.Exit.Code
		}
		out.Write(f.Data)
	}
}

// Sparse makes an empty file of so many bytes with an ext4 file system.
func Sparse(t testing.TB, path string, bytes int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err == nil {
		err = errors.Join(f.Truncate(bytes), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
}
