package wire

func (d *Disk) decode(f field) error {
	switch f.num {
	case 1:
		return f.string(&d.Device)
	case 2:
		return f.string(&d.FSType)
	case 3:
		return f.string(&d.Options)
	}
	return nil
}

func (s *WindowSize) decode(f field) error {
	switch f.num {
	case 1:
		return uintField(f, &s.Columns)
	case 2:
		return uintField(f, &s.Rows)
	}
	return nil
}

func (c *BootConfig) decode(f field) error {
	switch f.num {
	case 1:
		return f.string(&c.Hostname)
	case 2:
		return f.item(&c.Argv)
	case 3:
		return f.item(&c.Env)
	case 4:
		return f.string(&c.WorkDir)
	case 5:
		return f.string(&c.User)
	case 6:
		return f.bool(&c.TTY)
	case 7:
		return f.message(c.Size.decode)
	case 8:
		return f.bool(&c.Stdin)
	case 9:
		return f.bool(&c.HoldOutput)
	case 10:
		return uintField(f, &c.StopSignal)
	case 11:
		return f.message(c.Image.decode)
	case 12:
		c.Writable = &Disk{}
		return f.message(c.Writable.decode)
	case 13:
		return f.bool(&c.Init)
	case 14:
		return messageItem(f, &c.Interfaces, maxItems, (*Interface).decode)
	case 15:
		return f.item(&c.DNS)
	case 16:
		return f.item(&c.Search)
	case 17:
		return messageItem(f, &c.Mounts, maxItems, (*Mount).decode)
	case 18:
		return messageItem(f, &c.Files, maxItems, (*File).decode)
	case 19:
		return messageItem(f, &c.Secrets, maxItems, (*File).decode)
	case 20:
		return f.item(&c.SSHKeys)
	case 21:
		return f.string(&c.UserData)
	case 22:
		return f.string(&c.MetaData)
	}
	return nil
}

func (i *Interface) decode(f field) error {
	switch f.num {
	case 1:
		return f.string(&i.MAC)
	case 2:
		return uintField(f, &i.MTU)
	case 3:
		return f.item(&i.Addresses)
	case 4:
		return f.string(&i.GatewayIPv4)
	case 5:
		return f.string(&i.GatewayIPv6)
	}
	return nil
}

func (m *Mount) decode(f field) error {
	switch f.num {
	case 1:
		return f.message(m.Disk.decode)
	case 2:
		return f.string(&m.Path)
	case 3:
		return f.bool(&m.ReadOnly)
	}
	return nil
}

func (v *File) decode(f field) error {
	switch f.num {
	case 1:
		return f.string(&v.Path)
	case 2:
		return uintField(f, &v.Mode)
	case 3:
		return uintField(f, &v.UID)
	case 4:
		return uintField(f, &v.GID)
	case 5:
		return f.bytes(&v.Content)
	}
	return nil
}

func (s *Status) decode(f field) error {
	switch f.num {
	case 1:
		return f.string((*string)(&s.Phase))
	case 2:
		return f.string(&s.BootID)
	case 3:
		return f.string(&s.KernelRelease)
	case 4:
		return uintField(f, &s.InitStartUS)
	case 5:
		return uintField(f, &s.ConfigUS)
	case 6:
		return uintField(f, &s.ReadyUS)
	case 7:
		s.Exit = &Exit{}
		return f.message(s.Exit.decode)
	}
	return nil
}

func (x *Exit) decode(f field) error {
	switch f.num {
	case 1:
		return f.string((*string)(&x.Reason))
	case 2:
		return uintField(f, &x.Code)
	case 3:
		return uintField(f, &x.Signal)
	case 4:
		return f.bool(&x.Requested)
	case 5:
		return f.string(&x.Message)
	}
	return nil
}

func (v *Event) decode(f field) error {
	switch f.num {
	case 1:
		return f.string((*string)(&v.Kind))
	case 2:
		return f.message(v.Status.decode)
	}
	return nil
}

func (r *ExecRequest) decode(f field) error {
	switch f.num {
	case 1:
		return f.item(&r.Argv)
	case 2:
		return f.item(&r.Env)
	case 3:
		return f.string(&r.WorkDir)
	case 4:
		return f.string(&r.User)
	case 5:
		return f.bool(&r.TTY)
	case 6:
		return f.message(r.Size.decode)
	case 7:
		return f.bool(&r.Stdin)
	}
	return nil
}

func (r *AttachRequest) decode(f field) error {
	switch f.num {
	case 1:
		return f.bool(&r.Stdin)
	case 2:
		return uintField(f, &r.Replay)
	case 3:
		return f.bool(&r.Lossless)
	case 4:
		return f.message(r.Size.decode)
	}
	return nil
}

func (s *Stats) decode(f field) error {
	switch f.num {
	case 1:
		return uintField(f, &s.MemTotal)
	case 2:
		return uintField(f, &s.MemFree)
	case 3:
		return uintField(f, &s.MemAvailable)
	case 4, 5, 6:
		return f.float(&s.Load[f.num-4])
	case 7:
		return uintField(f, &s.UptimeMS)
	case 8:
		return uintField(f, &s.Processes)
	case 9:
		return uintField(f, &s.CPUs)
	case 10:
		return uintField(f, &s.CPUBusyMS)
	case 11:
		return uintField(f, &s.RootTotal)
	case 12:
		return uintField(f, &s.RootFree)
	}
	return nil
}

func (p *Process) decode(f field) error {
	switch f.num {
	case 1:
		return uintField(f, &p.PID)
	case 2:
		return f.string(&p.User)
	case 3:
		return uintField(f, &p.CPUMS)
	case 4:
		return uintField(f, &p.RSS)
	case 5:
		return f.string(&p.Command)
	}
	return nil
}

func (p *Probe) decode(f field) error {
	switch f.num {
	case 1:
		return uintField(f, &p.Port)
	case 2:
		return f.string(&p.Path)
	case 3:
		return uintField(f, &p.TimeoutMS)
	}
	return nil
}

func (r *ProbeResult) decode(f field) error {
	switch f.num {
	case 1:
		return f.bool(&r.OK)
	case 2:
		return f.string(&r.Message)
	}
	return nil
}

func (i *FileInfo) decode(f field) error {
	switch f.num {
	case 1:
		return uintField(f, &i.Mode)
	case 2:
		return uintField(f, &i.UID)
	case 3:
		return uintField(f, &i.GID)
	case 4:
		return uintField(f, &i.Size)
	case 5:
		return uintField(f, &i.MTimeUS)
	case 6:
		return f.string(&i.Link)
	}
	return nil
}

func (p *Problem) decode(f field) error {
	switch f.num {
	case 1:
		return f.string(&p.Kind)
	case 2:
		return f.string(&p.Code)
	case 3:
		return f.string(&p.Message)
	case 4:
		return f.string(&p.Hint)
	case 5:
		return uintField(f, &p.ExitCode)
	}
	return nil
}

// DecodeRequest reads the payload of a FrameRequest or FrameConfigure.
func DecodeRequest(b []byte) (*Request, error) {
	r := &Request{}
	err := decodeFields(b, func(f field) error {
		switch f.num {
		case 1:
			return f.string((*string)(&r.Method))
		case 2:
			r.Config = &BootConfig{}
			return f.message(r.Config.decode)
		case 3:
			r.Exec = &ExecRequest{}
			return f.message(r.Exec.decode)
		case 4:
			r.Attach = &AttachRequest{}
			return f.message(r.Attach.decode)
		case 5:
			return uintField(f, &r.GraceMS)
		case 6:
			return uintField(f, &r.TimeUS)
		case 7:
			return f.string(&r.Path)
		case 8:
			r.Mount = &Mount{}
			return f.message(r.Mount.decode)
		case 9:
			return uintField(f, &r.Port)
		case 10:
			r.Probe = &Probe{}
			return f.message(r.Probe.decode)
		}
		return nil
	})
	return r, err
}

// DecodeResponse reads the payload of a FrameResponse or FrameDone and cleans it.
func DecodeResponse(b []byte) (*Response, error) {
	r := &Response{}
	err := decodeFields(b, func(f field) error {
		switch f.num {
		case 1:
			r.Problem = &Problem{}
			return f.message(r.Problem.decode)
		case 2:
			r.Status = &Status{}
			return f.message(r.Status.decode)
		case 3:
			r.Stats = &Stats{}
			return f.message(r.Stats.decode)
		case 4:
			return uintField(f, &r.PID)
		case 5:
			r.Probe = &ProbeResult{}
			return f.message(r.Probe.decode)
		case 6:
			return messageItem(f, &r.Processes, TopProcesses, (*Process).decode)
		case 7:
			r.File = &FileInfo{}
			return f.message(r.File.decode)
		case 8:
			return uintField(f, &r.Size)
		case 9:
			return uintField(f, &r.ClockOffUS)
		}
		return nil
	})
	r.clean()
	return r, err
}

// DecodeEvent reads the payload of a FrameEvent and cleans it.
func DecodeEvent(b []byte) (*Event, error) {
	v := &Event{}
	err := decodeFields(b, v.decode)
	v.Kind = EventKind(CleanText(string(v.Kind), MaxIDLen))
	v.Status.clean()
	return v, err
}

// DecodeExit reads the payload of a FrameExit and cleans it.
func DecodeExit(b []byte) (*Exit, error) {
	x := &Exit{}
	err := decodeFields(b, x.decode)
	x.clean()
	return x, err
}
