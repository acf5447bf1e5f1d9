package guest

import (
	"crypto/rand"

	"github.com/blixard/blixard/guest/wire"
)

// The types of the protocol, documented in guest/wire.
type (
	BootConfig    = wire.BootConfig
	Disk          = wire.Disk
	WindowSize    = wire.WindowSize
	Status        = wire.Status
	Phase         = wire.Phase
	Exit          = wire.Exit
	ExitReason    = wire.ExitReason
	Event         = wire.Event
	EventKind     = wire.EventKind
	ExecRequest   = wire.ExecRequest
	AttachRequest = wire.AttachRequest
	Stats         = wire.Stats
	Token         = wire.Token
	Interface     = wire.Interface
	Mount         = wire.Mount
	File          = wire.File
	Process       = wire.Process
	Probe         = wire.Probe
	ProbeResult   = wire.ProbeResult
	FileInfo      = wire.FileInfo
)

// Phases, reasons, event kinds and exit codes, documented in guest/wire.
const (
	PhaseWaitingConfig = wire.PhaseWaitingConfig
	PhaseStarting      = wire.PhaseStarting
	PhaseRunning       = wire.PhaseRunning
	PhaseStopping      = wire.PhaseStopping
	PhaseExited        = wire.PhaseExited

	ExitCommand    = wire.ExitCommand
	ExitPowerOff   = wire.ExitPowerOff
	ExitReboot     = wire.ExitReboot
	ExitBootFailed = wire.ExitBootFailed

	EventStatus = wire.EventStatus
	EventReady  = wire.EventReady
	EventExited = wire.EventExited

	CodeBootFailed    = wire.CodeBootFailed
	CodeNotExecutable = wire.CodeNotExecutable
	CodeNotFound      = wire.CodeNotFound

	// SecretsDir is where secrets lie that name no other path; FileMode and SecretMode are the modes of
	// files that name none; DevicePrefix begins a device that is named by its drive's serial number.
	SecretsDir   = wire.SecretsDir
	FileMode     = wire.FileMode
	SecretMode   = wire.SecretMode
	DevicePrefix = wire.DevicePrefix
	// MaxConfigure is the most that a BootConfig may take, coded, in bytes.
	MaxConfigure = wire.MaxConfigure
	// PortName is the name the virtio-serial port must have.
	PortName = wire.PortName
	// ReplayBytes is the most AttachRequest.Replay can bring.
	ReplayBytes = wire.ReplayBytes
)

// NewToken draws a token for one boot from the operating system's randomness.
func NewToken() Token {
	var t Token
	rand.Read(t[:]) // never fails: crypto/rand ends the program instead
	return t
}

// ParseToken reads the 32 hex digits of Token.String.
func ParseToken(s string) (Token, error) { return wire.ParseToken(s) }
