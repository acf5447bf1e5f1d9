package wire

// The field numbers travel: never change or reuse one. Each encode has its decode in decode.go.

func (d *Disk) encode(e *encoder) {
	e.string(1, d.Device)
	e.string(2, d.FSType)
	e.string(3, d.Options)
}

func (s *WindowSize) encode(e *encoder) {
	e.uint(1, uint64(s.Columns))
	e.uint(2, uint64(s.Rows))
}

func (c *BootConfig) encode(e *encoder) {
	e.string(1, c.Hostname)
	e.items(2, c.Argv)
	e.items(3, c.Env)
	e.string(4, c.WorkDir)
	e.string(5, c.User)
	e.bool(6, c.TTY)
	e.message(7, c.Size.encode)
	e.bool(8, c.Stdin)
	e.bool(9, c.HoldOutput)
	e.int(10, int64(c.StopSignal))
	e.message(11, c.Image.encode)
	if c.Writable != nil {
		e.message(12, c.Writable.encode)
	}
	e.bool(13, c.Init)
	messages(e, 14, c.Interfaces, (*Interface).encode)
	e.items(15, c.DNS)
	e.items(16, c.Search)
	messages(e, 17, c.Mounts, (*Mount).encode)
	messages(e, 18, c.Files, (*File).encode)
	messages(e, 19, c.Secrets, (*File).encode)
	e.items(20, c.SSHKeys)
	e.string(21, c.UserData)
	e.string(22, c.MetaData)
}

func (i *Interface) encode(e *encoder) {
	e.string(1, i.MAC)
	e.uint(2, uint64(i.MTU))
	e.items(3, i.Addresses)
	e.string(4, i.GatewayIPv4)
	e.string(5, i.GatewayIPv6)
}

func (m *Mount) encode(e *encoder) {
	e.message(1, m.Disk.encode)
	e.string(2, m.Path)
	e.bool(3, m.ReadOnly)
}

func (v *File) encode(e *encoder) {
	e.string(1, v.Path)
	e.uint(2, uint64(v.Mode))
	e.uint(3, uint64(v.UID))
	e.uint(4, uint64(v.GID))
	e.bytes(5, v.Content)
}

func (s *Status) encode(e *encoder) {
	e.string(1, string(s.Phase))
	e.string(2, s.BootID)
	e.string(3, s.KernelRelease)
	e.int(4, s.InitStartUS)
	e.int(5, s.ConfigUS)
	e.int(6, s.ReadyUS)
	if s.Exit != nil {
		e.message(7, s.Exit.encode)
	}
}

func (x *Exit) encode(e *encoder) {
	e.string(1, string(x.Reason))
	e.int(2, int64(x.Code))
	e.int(3, int64(x.Signal))
	e.bool(4, x.Requested)
	e.string(5, x.Message)
}

func (v *Event) encode(e *encoder) {
	e.string(1, string(v.Kind))
	e.message(2, v.Status.encode)
}

func (r *ExecRequest) encode(e *encoder) {
	e.items(1, r.Argv)
	e.items(2, r.Env)
	e.string(3, r.WorkDir)
	e.string(4, r.User)
	e.bool(5, r.TTY)
	e.message(6, r.Size.encode)
	e.bool(7, r.Stdin)
}

func (r *AttachRequest) encode(e *encoder) {
	e.bool(1, r.Stdin)
	e.int(2, int64(r.Replay))
	e.bool(3, r.Lossless)
	e.message(4, r.Size.encode)
}

func (s *Stats) encode(e *encoder) {
	e.uint(1, s.MemTotal)
	e.uint(2, s.MemFree)
	e.uint(3, s.MemAvailable)
	e.float(4, s.Load[0])
	e.float(5, s.Load[1])
	e.float(6, s.Load[2])
	e.uint(7, s.UptimeMS)
	e.uint(8, uint64(s.Processes))
	e.uint(9, uint64(s.CPUs))
	e.uint(10, s.CPUBusyMS)
	e.uint(11, s.RootTotal)
	e.uint(12, s.RootFree)
}

func (p *Process) encode(e *encoder) {
	e.int(1, int64(p.PID))
	e.string(2, p.User)
	e.uint(3, p.CPUMS)
	e.uint(4, p.RSS)
	e.string(5, p.Command)
}

func (p *Probe) encode(e *encoder) {
	e.uint(1, uint64(p.Port))
	e.string(2, p.Path)
	e.uint(3, uint64(p.TimeoutMS))
}

func (r *ProbeResult) encode(e *encoder) {
	e.bool(1, r.OK)
	e.string(2, r.Message)
}

func (i *FileInfo) encode(e *encoder) {
	e.uint(1, uint64(i.Mode))
	e.uint(2, uint64(i.UID))
	e.uint(3, uint64(i.GID))
	e.uint(4, i.Size)
	e.int(5, i.MTimeUS)
	e.string(6, i.Link)
}

func (p *Problem) encode(e *encoder) {
	e.string(1, p.Kind)
	e.string(2, p.Code)
	e.string(3, p.Message)
	e.string(4, p.Hint)
	e.int(5, int64(p.ExitCode))
}

// Encode gives the payload of a FrameRequest or FrameConfigure.
func (r *Request) Encode() []byte {
	var e encoder
	e.string(1, string(r.Method))
	if r.Config != nil {
		e.message(2, r.Config.encode)
	}
	if r.Exec != nil {
		e.message(3, r.Exec.encode)
	}
	if r.Attach != nil {
		e.message(4, r.Attach.encode)
	}
	e.int(5, r.GraceMS)
	e.int(6, r.TimeUS)
	e.string(7, r.Path)
	if r.Mount != nil {
		e.message(8, r.Mount.encode)
	}
	e.uint(9, uint64(r.Port))
	if r.Probe != nil {
		e.message(10, r.Probe.encode)
	}
	return e.b
}

// Encode gives the payload of a FrameResponse or FrameDone.
func (r *Response) Encode() []byte {
	var e encoder
	if r.Problem != nil {
		e.message(1, r.Problem.encode)
	}
	if r.Status != nil {
		e.message(2, r.Status.encode)
	}
	if r.Stats != nil {
		e.message(3, r.Stats.encode)
	}
	e.int(4, int64(r.PID))
	if r.Probe != nil {
		e.message(5, r.Probe.encode)
	}
	messages(&e, 6, r.Processes, (*Process).encode)
	if r.File != nil {
		e.message(7, r.File.encode)
	}
	e.uint(8, r.Size)
	e.int(9, r.ClockOffUS)
	return e.b
}

// Encode gives the payload of a FrameEvent.
func (v *Event) Encode() []byte {
	var e encoder
	v.encode(&e)
	return e.b
}

// Encode gives the payload of a FrameExit.
func (x *Exit) Encode() []byte {
	var e encoder
	x.encode(&e)
	return e.b
}
