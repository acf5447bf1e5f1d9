package wire

import "time"

// Version of the protocol spoken by this build. Ends of different Major do not talk; a Minor
// only adds fields and calls, which the older end ignores or refuses by name.
const (
	VersionMajor = 1
	VersionMinor = 1
)

// MinorConfigured is the first minor version whose guests do what BootConfig says of interfaces, volumes,
// files, secrets, keys and user data.
const MinorConfigured = 1

// DevicePrefix begins a Disk's device that is named by its serial number.
const DevicePrefix = "serial:"

// SecretsDir is where secrets lie that name no other path.
const SecretsDir = "/run/secrets"

// Modes of files whose configuration says none.
const (
	FileMode   = 0o644
	SecretMode = 0o400
)

// PortName is the virtio-serial port the guest looks for in /sys/class/virtio-ports/*/name.
const PortName = "blixard.agent"

// Phase says how far a guest is. The values travel and never change.
type Phase string

// Phases in the order a guest goes through them. PhaseExited is final for this boot.
const (
	PhaseWaitingConfig Phase = "waiting-config" // init runs and waits for Configure
	PhaseStarting      Phase = "starting"       // mounting, switching root, starting the command
	PhaseRunning       Phase = "running"        // the command was started
	PhaseStopping      Phase = "stopping"       // Stop, Reboot or the guest itself began to end it
	PhaseExited        Phase = "exited"         // the command is gone; waits for AckExit
)

// ExitReason says why a boot ended. The values travel and never change.
type ExitReason string

// Reasons for the end of a boot.
const (
	ExitCommand    ExitReason = "exit"        // the main command ended, or Stop ended it
	ExitPowerOff   ExitReason = "poweroff"    // a program in the guest asked to power off
	ExitReboot     ExitReason = "reboot"      // Reboot was called or a program in the guest asked: boot again
	ExitBootFailed ExitReason = "boot-failed" // the root could not be built; Exit.Message says why
)

// Exit codes init gives when the main command never ran, as container runtimes do.
const (
	CodeBootFailed    = 125 // root, disks or mounts
	CodeNotExecutable = 126 // found but could not be started
	CodeNotFound      = 127 // no such file
	CodeSignalBase    = 128 // plus the number of the signal that ended it
)

// Disk names a block device of the guest and how to mount it.
type Disk struct {
	// Device is a path ("/dev/vda") or "serial:NAME", found by the drive's serial number in
	// whatever order the kernel met the drives. At most 20 bytes of serial.
	Device string
	// FSType is "ext4" or "erofs".
	FSType string
	// Options are mount options as in fstab, comma separated; empty for none.
	Options string
}

// WindowSize is a terminal's size in character cells; zero means 80 by 24.
type WindowSize struct {
	Columns uint16
	Rows    uint16
}

// Interface is a NIC of the guest and what is set on it before the command starts. An image's own init
// may change it later, by DHCP for one.
type Interface struct {
	// MAC finds the NIC: six hex bytes with colons.
	MAC string
	// MTU in bytes; zero leaves the driver's.
	MTU uint32
	// Addresses with their prefix length ("10.64.0.5/16", "fd00::5/64"). IPv6 ones are used at once,
	// without looking for a double.
	Addresses []string
	// GatewayIPv4 and GatewayIPv6 become default routes; either may be empty. They need not be in a subnet
	// of the addresses. Of several NICs the first one's routes are preferred.
	GatewayIPv4 string
	GatewayIPv6 string
}

// Mount is a volume below the root.
type Mount struct {
	Disk Disk
	// Path is absolute and without dots; it is made when it is missing. A fresh volume, whose root
	// directory is empty, gets the mode and owner of the directory it covers.
	Path     string
	ReadOnly bool
}

// File is written before the command starts, in place of what is at its path; directories on the way are
// made.
type File struct {
	// Path is absolute and without dots.
	Path string
	// Mode is the permission bits; zero means FileMode, or SecretMode of a secret.
	Mode    uint32
	UID     uint32
	GID     uint32
	Content []byte
}

// BootConfig is all a guest needs to become the VM that was asked for. Coded it may take at most
// MaxConfigure bytes.
type BootConfig struct {
	// Hostname is set before the command starts; empty leaves the kernel's.
	Hostname string
	// Argv is the command with its arguments, entrypoint and command of the image merged by the
	// host. A name without a slash is looked up in the PATH of Env. Empty only with Init.
	Argv []string
	// Env is the whole environment as KEY=VALUE. PATH, HOME and (with TTY) TERM are added
	// when they are missing.
	Env []string
	// WorkDir is made if it is missing; empty means "/".
	WorkDir string
	// User is "name", "uid", "name:group" or "uid:gid"; empty means root.
	User string
	// TTY runs the command on a pseudo terminal of its own: the console is a raw view of that
	// terminal in both directions, and so is each attach. A VM whose console should be a usable
	// shell sets it. Without TTY the command has pipes and the console only shows its output.
	TTY bool
	// Size is the terminal's first size.
	Size WindowSize
	// Stdin without TTY gives the command a pipe fed by an attach with Stdin, open until that
	// attach ends it; else its standard input is /dev/null.
	Stdin bool
	// HoldOutput makes the command wait, once it has written ReplayBytes, until the first
	// attach reads (at most HoldOutputLimit), so that the attach gets every byte.
	HoldOutput bool
	// StopSignal is the number of the signal Stop sends first; zero means SIGTERM.
	StopSignal int

	// Image is the read-only root.
	Image Disk
	// Writable is laid over Image and holds all changes; nil keeps them in memory.
	Writable *Disk

	// Init starts the image's own init (Argv, or /sbin/init when Argv is empty) as process 1 of a
	// PID namespace, with the agent as its parent outside; Exec starts commands beside that init.
	// Its reboot or power-off is the end of the boot. Stop sends SIGRTMIN+4, systemd's power-off,
	// where StopSignal is zero. TTY, Stdin and User count for Exec alone.
	Init bool

	// Interfaces are set up in this order; a NIC that is not there within five seconds fails the boot.
	Interfaces []Interface
	// DNS are addresses of name servers and Search are domains to look in: with any of them the guest's
	// /etc/resolv.conf is written anew at each boot, else it is left as it is.
	DNS    []string
	Search []string
	// Mounts are the volumes, mounted in this order; one that can't be fails the boot.
	Mounts []Mount
	// Files are written in this order, after Mounts.
	Files []File
	// Secrets are files in memory: those below SecretsDir on a file system of their own there, others
	// each mounted over its path. They are read-only, never swapped out and gone with the boot.
	Secrets []File
	// SSHKeys are lines that root's authorized_keys has at least.
	SSHKeys []string
	// UserData and MetaData are the NoCloud seed of an image with cloud-init; other images get nothing
	// of them. Empty MetaData beside UserData names the instance after Hostname.
	UserData string
	MetaData string
}

// Status is the state of a boot; it can be asked for at any time, as often as one likes.
type Status struct {
	Phase Phase
	// BootID is the kernel's random id of this boot.
	BootID string
	// KernelRelease as by uname -r.
	KernelRelease string
	// InitStartUS is the kernel's uptime when init began, in microseconds.
	InitStartUS int64
	// ConfigUS, ReadyUS: microseconds from init's begin to the arrival of the boot
	// configuration and to the start of the command; zero before.
	ConfigUS int64
	ReadyUS  int64
	// Exit is set in PhaseExited.
	Exit *Exit
}

// Exit is how a boot ended.
type Exit struct {
	Reason ExitReason
	// Code is the main command's exit code, 128+n if signal n ended it, 125..127 if it never ran.
	Code int
	// Signal is the signal that ended the command, or zero.
	Signal int
	// Requested is true if Stop or Reboot of the host brought it about.
	Requested bool
	// Message says in words what failed, for codes 125 to 127; at most MaxMessage bytes.
	Message string
}

// EventKind says what happened. Unknown kinds must be ignored.
type EventKind string

// Kinds of events.
const (
	EventStatus EventKind = "status" // the first event of each session: the state as it is
	EventReady  EventKind = "ready"  // the command was started
	EventExited EventKind = "exited" // the boot is over, AckExit is awaited
)

// Event is one change together with the state after it. Events are not kept for absent hosts:
// the first event of a session carries what they would have said.
type Event struct {
	Kind   EventKind
	Status Status
}

// ExecRequest starts a further process in a running guest.
type ExecRequest struct {
	Argv    []string
	Env     []string // added to the main command's environment
	WorkDir string
	User    string // as in BootConfig
	// TTY gives it a pseudo terminal of Size, its own session and one merged output.
	TTY  bool
	Size WindowSize
	// Stdin opens its standard input; else that is /dev/null (or a silent terminal).
	Stdin bool
}

// AttachRequest joins the main command's input and output.
type AttachRequest struct {
	// Stdin asks to be the writer. One attach may be it at a time; the console always is, too.
	Stdin bool
	// Replay is how many of the last bytes of output come first, at most ReplayBytes.
	Replay int
	// Lossless makes the command wait for this reader; else a reader that falls more than
	// ReplayBytes behind loses output and is told how much by a gap frame.
	Lossless bool
	// Size, when not zero, is set on the terminal at once.
	Size WindowSize
}

// Stats are figures of a running guest; sizes in bytes.
type Stats struct {
	MemTotal     uint64
	MemFree      uint64
	MemAvailable uint64
	Load         [3]float64 // 1, 5 and 15 minutes
	UptimeMS     uint64
	Processes    uint32
	CPUs         uint32
	// CPUBusyMS is the time all processors together were not idle since boot.
	CPUBusyMS uint64
	// Root is the root file system, as far as it is written to.
	RootTotal uint64
	RootFree  uint64
}

// Process is one process of the guest, with ids as a program beside the main command sees them.
type Process struct {
	PID int
	// User is its name in the image's /etc/passwd, or the number.
	User string
	// CPUMS is the processor time that it has used since its start, in milliseconds.
	CPUMS uint64
	// RSS is its resident memory in bytes.
	RSS uint64
	// Command is its arguments with spaces between, or its name in brackets; at most MaxCommand bytes.
	Command string
}

// Probe asks whether a server of the guest does its work. It goes to 127.0.0.1, and to ::1 where nobody
// listens there.
type Probe struct {
	Port uint16
	// Path, when it is not empty, is asked for by an HTTP GET, which must be answered with a status from 200
	// to 399; redirects are not followed. Else the port must take a connection.
	Path string
	// TimeoutMS bounds it; zero means ProbeLimit. In milliseconds.
	TimeoutMS uint32
}

// ProbeResult is how a probe ended.
type ProbeResult struct {
	OK bool
	// Message says why not; at most MaxMessage bytes.
	Message string
}

// FileInfo is what a guest says of a file.
type FileInfo struct {
	// Mode is st_mode: the kind of file and its permission bits.
	Mode uint32
	UID  uint32
	GID  uint32
	// Size in bytes.
	Size uint64
	// MTimeUS is the time of the last change, microseconds since 1970.
	MTimeUS int64
	// Link is where a symbolic link points to; at most MaxPath bytes.
	Link string
}

// Limits of the protocol. Each holds for both ends.
const (
	// MaxControl bounds a control message (request, response, event) in bytes.
	MaxControl = 64 << 10
	// MaxConfigure bounds the configure request alone, in bytes: a VM's spec, files and user data included,
	// has at most 1 MiB, 64 secrets of 64 KiB are 4 MiB, and the last MiB is for what an image adds.
	MaxConfigure = 6 << 20
	// MaxData bounds the bytes of one data frame (input or output).
	MaxData = 32 << 10
	// MaxMessage bounds texts made for people, in bytes.
	MaxMessage = 1 << 10
	// MaxPath bounds a path, in bytes: the kernel's own limit.
	MaxPath = 4 << 10
	// MaxCommand bounds Process.Command, in bytes.
	MaxCommand = 256
	// TopProcesses bounds the processes a guest tells of: 32 of MaxCommand and a few numbers are 12 KiB.
	TopProcesses = 32
	// ProbeLimit bounds a probe that names no time, MaxProbe any.
	ProbeLimit = 5 * time.Second
	MaxProbe   = 10 * time.Minute
	// ClockSkew is how far a guest's clock may be off before the host's is taken.
	ClockSkew = 500 * time.Millisecond
	// ReplayBytes is how much of the main command's output a guest keeps for late readers.
	ReplayBytes = 64 << 10
	// MaxStreams bounds the calls in flight of one session: 64 streams of a 256 KiB window are
	// 16 MiB in the worst case on either end.
	MaxStreams = 64
	// HoldOutputLimit bounds how long BootConfig.HoldOutput waits for the first attach.
	HoldOutputLimit = 60 * time.Second
	// AckLimit bounds how long a guest waits for AckExit before it ends itself.
	AckLimit = 10 * time.Minute
	// MaxGrace bounds the grace period of Stop and Reboot.
	MaxGrace = time.Hour
)
