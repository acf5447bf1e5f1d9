package qemu

import (
	"bytes"
	"context"
	_ "embed" // the tiny guest
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/driver"
)

const (
	kvmDevice = "/dev/kvm"
	// tinyTimeout bounds the tiny guest, which takes some 50 ms.
	tinyTimeout = 2 * time.Second
	// tinyExit is what QEMU ends with when the tiny guest reported success: the
	// value it wrote, doubled, plus one.
	tinyExit = 0x2a<<1 | 1
	// outputBytesMax of a helper run is kept.
	outputBytesMax = 4 << 10
	// firmwareBytes of the tiny guest's image: the least that QEMU maps.
	firmwareBytes = 64 << 10
	// resetVector is the offset in the image at which a CPU starts.
	resetVector = firmwareBytes - 16
)

// Memory of QEMU beyond its guest's RAM, in MiB: under TCG with the whole cache of
// translated code. Measured 70 when a small guest has booted, and some room.
const (
	overheadTCGMiB = 64 + translatedMiB
	overheadKVMMiB = 48
)

// tinyGuest is probe/guest.s assembled.
//
//go:embed probe/guest.bin
var tinyGuest []byte

// firmware gives the image of the tiny guest.
func firmware() []byte {
	b := make([]byte, firmwareBytes)
	copy(b, tinyGuest)
	// jmp rel16 to the image's first byte; the offset wraps in 64 KiB.
	const next = resetVector + 3
	rel := firmwareBytes - next
	b[resetVector], b[resetVector+1], b[resetVector+2] = 0xe9, byte(rel), byte(rel>>8)
	return b
}

// accelerator finds out what VMs run on, and why.
func accelerator(ctx context.Context, program, device string) (name, reason string) {
	if err := openable(device); err != nil {
		return driver.AcceleratorTCG, fmt.Sprintf("emulation, because %s can't be opened: %v", device, err)
	}
	began := time.Now()
	if err := runTiny(ctx, program, driver.AcceleratorKVM, "host"); err != nil {
		return driver.AcceleratorTCG, fmt.Sprintf("emulation, because a tiny guest did not run under KVM though %s is there: %v", device, err)
	}
	return driver.AcceleratorKVM, fmt.Sprintf("a tiny guest ran under KVM in %v", time.Since(began).Round(time.Millisecond))
}

// openable returns the short reason why a device can't be opened.
func openable(device string) error {
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// runTiny runs the tiny guest under an accelerator and returns nil when it
// reported success in time.
func runTiny(ctx context.Context, program, accelerator, cpu string) error {
	image, err := memoryFile("firmware", firmware())
	if err != nil {
		return err
	}
	defer image.Close()
	tctx, cancel := context.WithTimeout(ctx, tinyTimeout)
	defer cancel()
	out, code, err := runBounded(tctx, command{argv: []string{
		program, "-machine", "microvm,acpi=off,accel=" + accelerator, "-cpu", cpu, "-m", "16",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-sandbox", sandbox,
		"-bios", "/proc/self/fd/3", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04",
	}, files: []*os.File{image}})
	switch {
	case tctx.Err() != nil && ctx.Err() == nil:
		return fmt.Errorf("it did not end within %v", tinyTimeout)
	case err != nil:
		return err
	case code != tinyExit:
		return fmt.Errorf("QEMU ended with code %d, not %d%s", code, tinyExit, quote(out))
	}
	return nil
}

func quote(out string) string {
	if out = strings.TrimSpace(out); out == "" {
		return ""
	}
	return ": " + strings.Join(strings.Fields(out), " ")
}

// memoryFile makes a file that has no name, so nothing can be left behind.
func memoryFile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(content); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// command is a helper run of QEMU.
type command struct {
	argv []string
	// files become descriptors 3 and up.
	files []*os.File
}

// runBounded runs a command to its end or the context's, and gives the beginning
// of what it wrote and its exit code. When the context ends, the
// process is killed.
func runBounded(ctx context.Context, c command) (string, int, error) {
	var out bounded
	cmd := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...)
	cmd.Env, cmd.ExtraFiles = []string{"LC_ALL=C"}, c.files
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		err = nil
	}
	if err == nil {
		err = ctx.Err()
	}
	return out.String(), cmd.ProcessState.ExitCode(), err
}

// bounded keeps the first outputBytesMax bytes of what is written.
type bounded struct{ buf bytes.Buffer }

// Write implements io.Writer; it takes all and keeps what fits.
func (b *bounded) Write(p []byte) (int, error) {
	b.buf.Write(p[:max(0, min(len(p), outputBytesMax-b.buf.Len()))])
	return len(p), nil
}

func (b *bounded) String() string { return b.buf.String() }
