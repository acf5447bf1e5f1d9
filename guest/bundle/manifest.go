package bundle

import "strconv"

// FormatVersion is the version of manifest.json written by this build. A bundle of a higher one is
// refused: it was written by a newer blixard.
const FormatVersion = 1

// Names of the kernels that Build knows how to make. Any other name is a custom kernel's.
const (
	// KernelOwn is blixard's own build: virtio built in, no modules. Preferred wherever it is there.
	KernelOwn = "own"
	// KernelDebian is Debian's stock cloud kernel with the modules it needs.
	KernelDebian = "debian"
)

// Console devices of a guest.
const (
	ConsoleVirtio = "hvc0"
	ConsoleSerial = "ttyS0"
)

// ImageBusybox is the built-in image: Debian's static busybox.
const ImageBusybox = "busybox"

// Kernel is a kernel whose files were checked: all that a driver needs to boot it. The paths are
// absolute and stay valid until the bundle is built anew.
type Kernel struct {
	Name string
	// Path of the vmlinux or bzImage, InitramfsPath of the cpio archive that goes with it.
	Path          string
	InitramfsPath string
	// Cmdline is the kernel command line without the VM's own arguments (the token of the guest's
	// channel, the devices), which the driver adds behind it.
	Cmdline string
	// CmdlineTCG is what comes in addition under emulation; see CommandLineTCG.
	CmdlineTCG string
	// TickHz is how often a second the kernel's clock ticks (CONFIG_HZ); zero if unknown.
	TickHz int
	// ACPI is whether the machine needs ACPI tables for this kernel to find its devices.
	ACPI bool
	// Console is the device of the guest's console: ConsoleVirtio or ConsoleSerial.
	Console string
	// Version as the kernel itself tells it (uname -r).
	Version string
}

// Image is a read-only root file system whose digest was checked.
type Image struct {
	Name string
	// Path is absolute. The file is ext4, shared by all VMs, and must be attached read-only.
	Path string
	// Digest is "sha256:" and 64 hex digits of the file.
	Digest string
	// Entrypoint, Command, Env (KEY=VALUE) and WorkingDir are the image's defaults, with the
	// meaning they have in OCI images.
	Entrypoint []string
	Command    []string
	Env        []string
	WorkingDir string
}

// CommandLine gives the command line for a machine with hardware virtualization.
func (k Kernel) CommandLine() string { return k.Cmdline }

// CommandLineTCG gives the command line for an emulated machine whose host counts tscKHz thousand
// time stamp cycles a second ([github.com/blixard/blixard/guest/kernel.HostTSCKHz]). An emulated
// guest reads the host's time stamp counter, and is told its rate rather than left to calibrate it:
// that calibration takes time, sometimes fails and leaves a clock of 10 ms steps, and on a stock
// kernel sometimes hangs. Zero leaves the calibration to the guest. Never use this line under KVM:
// the guest takes the rate from KVM there.
func (k Kernel) CommandLineTCG(tscKHz uint32) string {
	line := k.Cmdline
	if k.CmdlineTCG != "" {
		line += " " + k.CmdlineTCG
	}
	if tscKHz != 0 {
		line += " tsc_early_khz=" + strconv.FormatUint(uint64(tscKHz), 10)
		if k.TickHz > 0 {
			// What a delay loop does in a tick: known, it is not measured on every further processor.
			line += " lpj=" + strconv.FormatUint(uint64(tscKHz)*1000/uint64(k.TickHz), 10)
		}
	}
	return line
}
