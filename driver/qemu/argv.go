package qemu

import (
	"fmt"
	"path/filepath"
	"regexp"
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

// Limits of a machine.
const (
	vcpusMax     = 64
	memoryMiBMin = 16
	memoryMiBMax = 1 << 20
	// A microvm has that many transports, each for one device of virtio: the pins of
	// its second interrupt controller, or of the free part of the first one, as there
	// is no second without ACPI.
	devicesMaxACPI = 24
	devicesMax     = 8
	// cmdlineBytesMax is the kernel's own limit (COMMAND_LINE_SIZE of x86) less what
	// QEMU adds for the devices.
	cmdlineBytesMax = 2048 - 8*48
)

// serialPattern of a disk: virtio-blk has room for 20 bytes.
var serialPattern = regexp.MustCompile(`^[A-Za-z0-9_.-]{0,20}$`)

// sandbox confines QEMU by seccomp: no new privileges, no child processes, no
// change of its own limits.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// argv builds QEMU's command. It is pure: what files are is looked at elsewhere,
// and their names are not in it.
func argv(program, accelerator string, cfg driver.Config) ([]string, error) {
	if err := check(cfg); err != nil {
		return nil, err
	}
	fds := describe(cfg)
	cpu := "max"
	if accelerator == driver.AcceleratorKVM {
		cpu = "host"
	}
	a := []string{
		program,
		"-name", "guest=" + escape(cfg.ProcessID),
		"-nodefaults", "-no-user-config", "-nographic", "-no-reboot",
		"-sandbox", sandbox,
		"-accel", acceleration(accelerator),
		"-machine", machine(cfg),
		"-cpu", cpu,
		"-smp", "cpus=" + strconv.FormatUint(uint64(cfg.VCPUs), 10),
		"-m", "size=" + strconv.FormatUint(uint64(cfg.MemoryMiB), 10) + "M",
		"-kernel", fdPath(fds.file(0)),
		"-append", cfg.Cmdline,
	}
	disks := 1
	if cfg.Initramfs != "" {
		a = append(a, "-initrd", fdPath(fds.file(1)))
		disks = 2
	}
	a = append(a, console(fds.console())...)
	a = append(a,
		"-chardev", "socket,id=qmp,server=on,wait=off,fd="+strconv.Itoa(qmpFD),
		"-mon", "chardev=qmp,mode=control",
	)
	if cfg.Console == consoleSerial {
		a = append(a, "-serial", "chardev:console")
	}
	for i, d := range cfg.Drives {
		a = append(a, drive(i, d, fds.file(disks+i))...)
	}
	a = append(a, nics(cfg.NICs)...)
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

// translatedMiB is the cache of translated code, which QEMU would else let grow to 1 GiB
// beside the guest's memory.
const translatedMiB = 64

func acceleration(name string) string {
	if name == driver.AcceleratorTCG {
		return name + ",tb-size=" + strconv.Itoa(translatedMiB)
	}
	return name
}

func machine(cfg driver.Config) string {
	return strings.Join([]string{
		"microvm",
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

// console is the terminal behind the files. It is opened as a "pipe" and not as
// "stdio", because that one sets the terminal to turn each newline into two
// bytes.
func console(fd int) []string {
	set, name := fdSet(fd)
	return append(set, "-chardev", "pipe,id=console,path="+name)
}

// driveNode names the disk of an index.
func driveNode(i int) string { return "disk" + strconv.Itoa(i) }

// drive attaches a raw disk. Its format is never guessed, and a lock of the opened
// file keeps a second writer off.
func drive(i int, d driver.Drive, fd int) []string {
	id := driveNode(i)
	set, name := fdSet(fd)
	device := "virtio-blk-device,drive=" + id
	if d.Serial != "" {
		device += ",serial=" + d.Serial
	}
	return append(set,
		"-blockdev", "driver=raw,node-name="+id+",read-only="+onOff(d.ReadOnly)+
			",discard=unmap,file.driver=file,file.locking=on,file.filename="+name,
		"-device", device,
	)
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
	if err := checkDevices(cfg); err != nil {
		return err
	}
	if err := checkJail(cfg); err != nil {
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

// checkDevices refuses more devices than the machine has places for.
func checkDevices(cfg driver.Config) error {
	if err := checkNICs(cfg.NICs); err != nil {
		return err
	}
	most, why := devicesMax, "a machine without ACPI"
	if cfg.ACPI {
		most, why = devicesMaxACPI, "a machine"
	}
	// One is the guest's channel and console.
	if n := 1 + len(cfg.Drives) + len(cfg.NICs); n > most {
		return problem.New(problem.Invalid, "driver.devices",
			"%d devices (%d disks, %d network devices, 1 for the guest's channel), %s has room for %d",
			n, len(cfg.Drives), len(cfg.NICs), why, most).WithHint("give the VM fewer volumes or networks")
	}
	seen := map[string]bool{}
	for i, d := range cfg.Drives {
		if !serialPattern.MatchString(d.Serial) {
			return invalid("driver.serial", "disk %d: the serial %q does not match %s", i, d.Serial, serialPattern)
		}
		if d.Serial != "" && seen[d.Serial] {
			return invalid("driver.serial", "disk %d: the serial %q is there twice", i, d.Serial)
		}
		seen[d.Serial] = true
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
