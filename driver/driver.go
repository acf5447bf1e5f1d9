package driver

import (
	"context"
	"io"
	"net"
	"net/netip"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// Names of the accelerators.
const (
	AcceleratorKVM = "kvm"
	AcceleratorTCG = "tcg"
)

// Info is what a driver found out about its hypervisor on this host.
type Info struct {
	Name    string
	Version string
	// Accelerator is kvm or tcg, and AcceleratorReason a sentence that says why.
	Accelerator       string
	AcceleratorReason string
	// OverheadMiB is host memory of one VMM beyond its guest's RAM; admission
	// counts it.
	OverheadMiB uint32
}

// Drive is a disk of a VM. Its format is always raw and never guessed.
type Drive struct {
	// Path of a regular file; its last element must not be a symlink. The file is
	// opened by the Spawner, and the VMM gets the descriptor alone.
	Path     string
	ReadOnly bool
	// Serial by which the guest finds the disk in whatever order it sees them, at
	// most 20 bytes of letters, digits, '-', '_' and '.'; empty means none.
	Serial string
}

// NIC is a network device of a VM. Exactly one of Tap and User is set.
type NIC struct {
	// MAC is the guest's address, such as 02:00:00:00:00:01: one of a single
	// device, not of a group.
	MAC string
	// Tap is the name of a persistent tap device on the host. The Spawner opens
	// it, and the VMM gets the descriptor alone.
	Tap string
	// User is a network of the VMM's own, which opens sockets on the host for its
	// guest and needs no privileges.
	User *UserNet
	// MTU in bytes that the guest is told; 0 means nothing is told.
	MTU uint32
}

// UserNet is QEMU's user-mode network: the VMM itself is router, DHCP server and
// DNS forwarder of its one guest. The zero value gives 10.0.2.0/24 without
// forwards. Through the router's address a guest reaches what listens on the
// host's loopback, unless Isolated is set.
type UserNet struct {
	// Network, IPv4 of 8 to 30 bits; the zero value means 10.0.2.0/24.
	Network netip.Prefix
	// Router, DNS and Guest are addresses in Network; zero values mean its
	// second, third and fifteenth. Guest is what DHCP gives.
	Router, DNS, Guest netip.Addr
	// Isolated guests reach nothing but their forwards.
	Isolated bool
	Forwards []Forward
}

// Forward is a port of the host that leads to one of the guest. A jailed VMM can
// listen on the ports below 1024 only where the host lets everybody
// (net.ipv4.ip_unprivileged_port_start); elsewhere the start fails.
type Forward struct {
	// Protocol is tcp or udp.
	Protocol string
	// HostAddress to listen on; the zero value means 127.0.0.1.
	HostAddress netip.Addr
	HostPort    uint16
	GuestPort   uint16
}

// Config is all that a driver needs to start a VM. It is not changed after Start.
type Config struct {
	// ProcessID names the VMM process: unique on the node for each boot.
	ProcessID    string
	AllocationID string
	Epoch        uint64
	// Lane is the supervisor that shall own the process.
	Lane Lane
	// Dir is the VM's own directory; sockets are made in it.
	Dir string

	VCPUs     uint32
	MemoryMiB uint32
	// Kernel and Initramfs are paths; Cmdline is complete but for what the
	// driver itself must add.
	Kernel    string
	Initramfs string
	Cmdline   string
	// ACPI is whether the machine needs ACPI tables for this kernel to find its
	// devices.
	ACPI   bool
	Drives []Drive
	NICs   []NIC
	// Console is the guest's console device: ttyS0 or hvc0.
	Console string
	// LogPath, LogBytesMax and LogFilesMax bound the console's log.
	LogPath     string
	LogBytesMax uint64
	LogFilesMax uint32
	// Metadata is given back by List.
	Metadata map[string]string
	// Jail confines the VMM; nil leaves it as it is. What it leaves out, the driver
	// fills in: room for the guest's memory and its own, threads and processors for
	// its devices, and the files that the VMM's program needs.
	Jail *blixardv1.Jail
}

// Lane is one of the two supervisors of a node.
type Lane string

// The lanes: VMs whose policy is failover are exclusive, all others shared.
const (
	LaneShared    Lane = "shared"
	LaneExclusive Lane = "exclusive"
)

// Exit is how a VMM process ended.
type Exit struct {
	// Code of a normal exit; -1 when a signal ended it.
	Code   int
	Signal int
	At     time.Time
	// Stderr is the end of what the VMM wrote there, at most 4 KiB.
	Stderr string
}

// Event is what a VMM tells by itself.
type Event struct {
	// Kind is one of the constants below.
	Kind EventKind
	// Guest is true when the guest caused it.
	Guest bool
	Time  time.Time
}

// EventKind names an event.
type EventKind string

// The events that drivers pass on; others are dropped.
const (
	EventShutdown EventKind = "shutdown"
	EventReset    EventKind = "reset"
	EventPanicked EventKind = "panicked"
	EventStopped  EventKind = "paused"
	EventResumed  EventKind = "resumed"
)

// Driver starts VMs of one hypervisor. Implementations are safe for concurrent
// use; calls for one ProcessID must not overlap.
type Driver interface {
	// Probe looks at the hypervisor and the host. It fails with a problem that
	// names the missing program or the version needed. It may run a tiny guest
	// and so takes up to some seconds; the answer is kept.
	Probe(ctx context.Context) (Info, error)
	// Start starts a VM. It is idempotent by ProcessID: the running VM is given
	// back. On an error nothing of the start is left behind. The caller must
	// Close the VM, which ends nothing.
	Start(ctx context.Context, cfg Config) (VM, error)
	// Adopt gives the VM of a process that an earlier daemon started. It fails
	// with a problem of kind NotFound when the Spawner does not know it.
	Adopt(ctx context.Context, lane Lane, processID string) (VM, error)
}

// VM is a started VM seen by its driver. Its methods are safe for concurrent
// use. Close frees the control connection and leaves the VM running.
type VM interface {
	Process() *blixardv1.SupervisedProcess
	// Connect opens the guest's channel. Only one connection is served at a
	// time; the caller closes it.
	Connect(ctx context.Context) (net.Conn, error)
	// PowerButton asks the guest to shut down. It fails with a problem of kind
	// Unavailable and code driver.no_power_button where the machine has none.
	PowerButton(ctx context.Context) error
	// Responsive asks the VMM for its state over the control connection and so
	// tells a hung VMM from a working one.
	Responsive(ctx context.Context) error
	// Pause stops the guest's processors, Resume lets them go on. Both are
	// idempotent and return when it is done.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// AttachDrive adds a disk behind the ones that are there, DetachDrive takes the
	// one of an index away; the others keep theirs. Both fail with a problem of kind
	// Unavailable and code driver.no_hotplug where the machine has none: then the
	// change takes a new start.
	AttachDrive(ctx context.Context, d Drive) error
	DetachDrive(ctx context.Context, index int) error
	// ResizeDrive makes the disk of an index, counted as in Config.Drives, and its
	// file larger; the guest is told. The size it has already is no error. It fails
	// with a problem of kind Invalid for a smaller size (driver.shrink), one that is
	// not a multiple of 512 (driver.size), a disk that is not there or is read-only
	// (driver.drive).
	ResizeDrive(ctx context.Context, index int, bytes uint64) error
	// Statistics tells what the disks have done since the start.
	Statistics(ctx context.Context) (Statistics, error)
	// Terminate sends SIGTERM, Kill SIGKILL to the VMM process. Both are no
	// error when it has already ended.
	Terminate(ctx context.Context) error
	Kill(ctx context.Context) error
	// Wait returns when the process has ended. It may be called any number of
	// times.
	Wait(ctx context.Context) (Exit, error)
	// Forget drops what the Spawner keeps of an ended process.
	Forget(ctx context.Context) error
	// Events gives the VMM's events. The channel is bounded (events beyond are
	// dropped, oldest first) and closed by Close or the end of the process.
	Events() <-chan Event
	io.Closer
}

// Statistics of a VM since its start.
type Statistics struct {
	// Drives in the order of Config.Drives.
	Drives []DriveStatistics
}

// DriveStatistics counts what a guest did with a disk.
type DriveStatistics struct {
	ReadBytes, WrittenBytes uint64
	Reads, Writes, Flushes  uint64
}

// Metadata that a Spawner adds to a process.
const (
	// MetadataFiles are the files it was given, as "device:inode" in the order of
	// the request.
	MetadataFiles = "supervisor.files"
	// MetadataJail is there for a jailed process; it says what of its jail is not
	// there for want of rights or of a newer kernel, and is empty when all is.
	MetadataJail = "supervisor.jail"
)

// Spawner owns VMM processes. The supervisor's client is the one in production.
// Implementations are safe for concurrent use.
type Spawner interface {
	// Spawn starts a process or gives back the running one of the same id.
	Spawn(ctx context.Context, lane Lane, req *blixardv1.SpawnRequest) (*blixardv1.SpawnResponse, error)
	List(ctx context.Context, lane Lane) ([]*blixardv1.SupervisedProcess, error)
	// Wait returns when the process has ended. A problem of kind NotFound says
	// that the lane does not know it (its supervisor was started anew).
	Wait(ctx context.Context, lane Lane, processID string) (*blixardv1.SupervisedProcess, error)
	Signal(ctx context.Context, lane Lane, processID string, signal int) error
	Forget(ctx context.Context, lane Lane, processID string) error
}
