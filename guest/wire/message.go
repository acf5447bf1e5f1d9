package wire

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Method names a call. The values travel and never change.
type Method string

// The calls. Configure, Stop, Reboot and AckExit may be repeated: the second does nothing.
const (
	MethodStatus    Method = "status"
	MethodConfigure Method = "configure"
	MethodEvents    Method = "events"
	MethodExec      Method = "exec"
	MethodAttach    Method = "attach"
	MethodStop      Method = "stop"
	MethodReboot    Method = "reboot"
	MethodStats     Method = "stats"
	MethodPing      Method = "ping"
	MethodAckExit   Method = "ack-exit"

	// Since minor version 1. All but the copies, mount and unmount may be repeated.
	MethodSetTime  Method = "set-time"
	MethodTop      Method = "top"
	MethodProbe    Method = "probe"
	MethodDial     Method = "dial"
	MethodStat     Method = "stat"
	MethodCopyTo   Method = "copy-to"
	MethodCopyFrom Method = "copy-from"
	MethodMount    Method = "mount"
	MethodUnmount  Method = "unmount"
	MethodGrow     Method = "grow"
)

// Request begins every stream. Only the field of its method is set.
type Request struct {
	Method Method
	Config *BootConfig
	Exec   *ExecRequest
	Attach *AttachRequest
	// GraceMS of Stop and Reboot is the time between the stop signal and SIGKILL.
	GraceMS int64
	// TimeUS of Configure and SetTime is the host's time, microseconds since 1970.
	TimeUS int64
	// Path of Stat, CopyTo, CopyFrom, Unmount and Grow.
	Path  string
	Mount *Mount
	// Port of Dial.
	Port  uint16
	Probe *Probe
}

// Response answers a request.
type Response struct {
	Problem *Problem
	Status  *Status
	Stats   *Stats
	PID     int
	// Probe, Processes and File answer Probe, Top and Stat.
	Probe     *ProbeResult
	Processes []Process
	File      *FileInfo
	// Size answers Grow: the file system's size in bytes.
	Size uint64
	// ClockOffUS answers SetTime: by how much the guest's clock was ahead, in microseconds.
	ClockOffUS int64
}

// Problem says why a call was refused: the kinds and codes of internal/problem.
type Problem struct {
	Kind    string
	Code    string
	Message string
	Hint    string
	// ExitCode is 126 or 127 when a command could not be started.
	ExitCode int
}

// Error makes a Problem an error within the guest.
func (p *Problem) Error() string { return p.Message }

// Kinds of problems a guest reports, the words of internal/problem, which is too large for it.
const (
	KindInvalid     = "invalid"
	KindConflict    = "conflict"
	KindNotFound    = "not_found"
	KindUnavailable = "unavailable"
	KindInternal    = "internal"
)

// MaxIDLen bounds ids and releases that a guest reports, in bytes.
const MaxIDLen = 128

// CleanText makes text from a guest fit to be shown: at most limit bytes of it, no control
// characters, valid UTF-8.
func CleanText(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
		for len(s) > 0 && !utf8.ValidString(s[max(0, len(s)-utf8.UTFMax):]) && limit-len(s) < utf8.UTFMax {
			s = s[:len(s)-1]
		}
	}
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// clean bounds and cleans what a guest said of itself, in place.
func (s *Status) clean() {
	s.Phase = Phase(CleanText(string(s.Phase), MaxIDLen))
	s.BootID = CleanText(s.BootID, MaxIDLen)
	s.KernelRelease = CleanText(s.KernelRelease, MaxIDLen)
	if s.Exit != nil {
		s.Exit.clean()
	}
}

// clean bounds and cleans an exit a guest reported, in place.
func (x *Exit) clean() {
	x.Reason = ExitReason(CleanText(string(x.Reason), MaxIDLen))
	x.Message = CleanText(x.Message, MaxMessage)
	x.Code &= 0xff
	x.Signal &= 0x7f
}

// clean bounds and cleans all of an answer that is text, in place.
func (r *Response) clean() {
	if r.Problem != nil {
		r.Problem.clean()
	}
	if r.Status != nil {
		r.Status.clean()
	}
	if r.Probe != nil {
		r.Probe.Message = CleanText(r.Probe.Message, MaxMessage)
	}
	for i := range r.Processes {
		p := &r.Processes[i]
		p.User, p.Command = CleanText(p.User, MaxIDLen), CleanText(p.Command, MaxCommand)
	}
	if r.File != nil {
		r.File.Link = CleanText(r.File.Link, MaxPath)
	}
}

// clean bounds and cleans a guest's problem, in place.
func (p *Problem) clean() {
	p.Kind = CleanText(p.Kind, MaxIDLen)
	p.Code = CleanText(p.Code, MaxIDLen)
	p.Message = CleanText(p.Message, MaxMessage)
	p.Hint = CleanText(p.Hint, MaxMessage)
	p.ExitCode &= 0xff
}
