package wire

import "time"

// Version of the protocol spoken by this build. Ends of different Major do not talk; a Minor
// only adds fields and calls, which the older end ignores or refuses by name.
const (
	VersionMajor = 1
	VersionMinor = 0
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

// BootConfig is all a guest needs to become the VM that was asked for. Coded it may take at most
// MaxControl bytes, environment included.
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

// Limits of the protocol. Each holds for both ends.
const (
	// MaxControl bounds a control message (request, response, event) in bytes.
	MaxControl = 64 << 10
	// MaxData bounds the bytes of one data frame (input or output).
	MaxData = 32 << 10
	// MaxMessage bounds texts made for people, in bytes.
	MaxMessage = 1 << 10
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
