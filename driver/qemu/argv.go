package qemu

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/internal/problem"
)

// Names of a VM's sockets in its directory.
const (
	agentSocket = "agent.sock"
	qmpSocket   = "qmp.sock"
)

// Descriptors of the sockets in QEMU, as the Spawner hands them over.
const (
	agentFD = 3
	qmpFD   = 4
)

// Limits of a machine.
const (
	vcpusMax     = 64
	memoryMiBMin = 16
	memoryMiBMax = 1 << 20
	// drivesMax leaves room for other devices on the 8 transports that a microvm
	// has at least.
	drivesMax = 6
	// cmdlineBytesMax is the kernel's own limit (COMMAND_LINE_SIZE of x86) less what
	// QEMU adds for the devices.
	cmdlineBytesMax = 2048 - 8*48
)

// consolePath is the pty that the Spawner gave as standard input. It is opened as
// a "pipe" and not as "stdio", because that one sets the terminal to turn each
// newline into two bytes.
const consolePath = "/proc/self/fd/0"

// sandbox confines QEMU by seccomp: no new privileges, no child processes, no
// change of its own limits.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// argv builds QEMU's command. It is pure: what files are is looked at elsewhere.
func argv(program, accelerator string, cfg driver.Config) ([]string, error) {
	if err := check(cfg); err != nil {
		return nil, err
	}
	cpu := "max"
	if accelerator == driver.AcceleratorKVM {
		cpu = "host"
	}
	a := []string{
		program,
		"-name", "guest=" + escape(cfg.ProcessID),
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
		"-sandbox", sandbox,
		"-machine", machine(accelerator, cfg),
		"-cpu", cpu,
		"-smp", "cpus=" + strconv.FormatUint(uint64(cfg.VCPUs), 10),
		"-m", "size=" + strconv.FormatUint(uint64(cfg.MemoryMiB), 10) + "M",
		"-kernel", cfg.Kernel,
		"-append", cfg.Cmdline,
	}
	if cfg.Initramfs != "" {
		a = append(a, "-initrd", cfg.Initramfs)
	}
	a = append(a,
		"-chardev", "socket,id=qmp,server=on,wait=off,fd="+strconv.Itoa(qmpFD),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", "pipe,id=console,path="+consolePath,
	)
	if cfg.Console == consoleSerial {
		a = append(a, "-serial", "chardev:console")
	}
	for i, d := range cfg.Drives {
		a = append(a, drive(i, d)...)
	}
	a = append(a,
		"-device", "virtio-serial-device,max_ports=3",
		"-chardev", "socket,id=agent,server=on,wait=off,fd="+strconv.Itoa(agentFD),
		"-device", "virtserialport,chardev=agent,nr=1,name="+guest.PortName,
	)
	if cfg.Console == consoleVirtio {
		a = append(a, "-device", "virtconsole,chardev=console,nr=0")
	}
	return a, nil
}

// Consoles that the driver knows.
const (
	consoleSerial = "ttyS0"
	consoleVirtio = "hvc0"
)

func machine(accelerator string, cfg driver.Config) string {
	return strings.Join([]string{
		"microvm",
		"accel=" + accelerator,
		"acpi=" + onOff(cfg.ACPI),
		"isa-serial=" + onOff(cfg.Console == consoleSerial),
		// No page of one guest may tell of another's (KSM), and no core of the host
		// may hold a guest's memory.
		"mem-merge=off",
		"dump-guest-core=off",
	}, ",")
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

// drive attaches a raw disk. Its format is never guessed, and a lock keeps a
// second writer off.
func drive(i int, d driver.Drive) []string {
	id := "disk" + strconv.Itoa(i)
	return []string{
		"-blockdev", "driver=raw,node-name=" + id + ",read-only=" + onOff(d.ReadOnly) +
			",discard=unmap,file.driver=file,file.locking=on,file.filename=" + escape(d.Path),
		"-device", "virtio-blk-device,drive=" + id,
	}
}

// escape makes a value of a comma-separated option.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func invalid(code, format string, args ...any) error {
	return problem.New(problem.Invalid, code, format, args...)
}

// check refuses what can't become a command.
func check(cfg driver.Config) error {
	switch {
	case cfg.ProcessID == "":
		return invalid("driver.process_id", "the VM has no process id")
	case cfg.VCPUs < 1 || cfg.VCPUs > vcpusMax:
		return invalid("driver.vcpus", "%d virtual CPUs, 1 to %d are possible", cfg.VCPUs, vcpusMax)
	case cfg.MemoryMiB < memoryMiBMin || cfg.MemoryMiB > memoryMiBMax:
		return invalid("driver.memory", "%d MiB of memory, %d to %d are possible", cfg.MemoryMiB, memoryMiBMin, memoryMiBMax)
	case len(cfg.Drives) > drivesMax:
		return invalid("driver.drives", "%d disks, at most %d are possible", len(cfg.Drives), drivesMax)
	case cfg.Console != consoleSerial && cfg.Console != consoleVirtio:
		return invalid("driver.console", "console %q, %s and %s are possible", cfg.Console, consoleSerial, consoleVirtio)
	case len(cfg.Cmdline) > cmdlineBytesMax:
		return invalid("driver.cmdline", "the kernel command line has %d bytes, at most %d fit", len(cfg.Cmdline), cmdlineBytesMax)
	}
	if err := plain("process id", cfg.ProcessID); err != nil {
		return err
	}
	if err := plain("kernel command line", cfg.Cmdline); err != nil {
		return err
	}
	paths := map[string]string{"directory": cfg.Dir, "kernel": cfg.Kernel}
	if cfg.Initramfs != "" {
		paths["initramfs"] = cfg.Initramfs
	}
	for i, d := range cfg.Drives {
		paths[fmt.Sprintf("disk %d", i)] = d.Path
	}
	for what, p := range paths {
		if err := plain(what, p); err != nil {
			return err
		}
		if !filepath.IsAbs(p) {
			return invalid("driver.path", "%s %q is not an absolute path", what, p)
		}
	}
	return nil
}

// plain refuses what would end an argument or a line.
func plain(what, s string) error {
	if strings.ContainsAny(s, "\n\r\x00") {
		return invalid("driver.odd_characters", "%s %q has a line break or a zero byte", what, s)
	}
	return nil
}
