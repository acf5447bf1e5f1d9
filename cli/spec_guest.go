package cli

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// Limits of files that go into a spec; the API has the same.
const (
	guestFileBytesMax = 64 << 10
	userDataBytesMax  = 64 << 10
)

// readSmall reads a file of this host that a flag names.
func readSmall(flag, path string, bytesMax int64) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, usageError("%s: there is no file %s", flag, path).WithHint("see whether the path is right")
	}
	if err != nil {
		return nil, usageError("%s: %v", flag, err).WithHint("see whether you may read it")
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, bytesMax+1))
	if err != nil {
		return nil, usageError("%s: %v", flag, err).WithHint("it must be a file")
	}
	if int64(len(b)) > bytesMax {
		return nil, usageError("%s: %s has more than %d KiB", flag, path, bytesMax>>10).WithHint("copy larger files with `blixard vm cp`, or put them on a volume")
	}
	return b, nil
}

// applyGuest is apply for what is put into the guest.
func (s *specFlags) applyGuest(spec *blixardv1.VMSpec, given func(string) bool) error {
	if given("init") {
		mode := blixardv1.InitMode_Enum(blixardv1.InitMode_Enum_value[s.initMode])
		if s.initMode != "" && mode == blixardv1.InitMode_unspecified {
			return badWord("--init", s.initMode, "automatic", "command", "system")
		}
		spec.Init = mode
	}
	if given("stop-signal") {
		n, err := parseSignal(s.stopSignal)
		if err != nil {
			return err
		}
		spec.StopSignal = n
	}
	if given("user-data") && s.userData != "" {
		text, err := readSmall("--user-data", s.userData, userDataBytesMax)
		if err != nil {
			return err
		}
		spec.UserData = string(text)
	}
	if given("ssh-key") {
		keys, err := parseKeys(s.sshKeys)
		if err != nil {
			return err
		}
		spec.SshKeys = keys
	}
	if given("file") {
		files, err := parseFiles(s.files)
		if err != nil {
			return err
		}
		spec.Files = files
	}
	if given("secret") {
		spec.Secrets = nil
		for _, text := range s.secrets {
			name, path, _ := strings.Cut(text, ":")
			spec.Secrets = append(spec.Secrets, &blixardv1.SecretAttachment{Secret: name, Path: path})
		}
	}
	check, err := s.health.check()
	if err != nil {
		return err
	}
	if check != nil {
		spec.Health = check
	}
	return nil
}

// parseSignal reads TERM, SIGTERM or 15; empty is 0.
func parseSignal(text string) (uint32, error) {
	if text == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(text, 10, 7); err == nil && n >= 1 && n <= 64 {
		return uint32(n), nil
	}
	name := strings.ToUpper(text)
	if n := unix.SignalNum("SIG" + strings.TrimPrefix(name, "SIG")); n != 0 {
		return uint32(n), nil
	}
	return 0, usageError("--stop-signal %q is no signal", text).WithHint("write a name such as QUIT, or a number from 1 to 64")
}

// parseKeys reads files of public keys.
func parseKeys(paths []string) ([]string, error) {
	var keys []string
	for _, path := range paths {
		text, err := readSmall("--ssh-key", path, guestFileBytesMax)
		if err != nil {
			return nil, err
		}
		if strings.Contains(string(text), "PRIVATE KEY") {
			return nil, usageError("--ssh-key %s is a private key", path).WithHint("name the public one, %s.pub", path)
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				keys = append(keys, line)
			}
		}
	}
	return keys, nil
}

// parseFiles reads FROM:PATH and FROM:PATH:MODE.
func parseFiles(list []string) ([]*blixardv1.GuestFile, error) {
	var files []*blixardv1.GuestFile
	for _, text := range list {
		from, rest, found := strings.Cut(text, ":")
		path, modeText, hasMode := strings.Cut(rest, ":")
		if !found || from == "" || !strings.HasPrefix(path, "/") {
			return nil, usageError("--file %q is not FROM:PATH", text).WithHint("write --file ./app.conf:/etc/app.conf, or with a mode: ./key:/etc/key:0600")
		}
		content, err := readSmall("--file", from, guestFileBytesMax)
		if err != nil {
			return nil, err
		}
		f := &blixardv1.GuestFile{Path: filepath.Clean(path), Content: content}
		if st, err := os.Stat(from); err == nil {
			f.Mode = uint32(st.Mode().Perm())
		}
		if hasMode {
			mode, err := strconv.ParseUint(modeText, 8, 12)
			if err != nil {
				return nil, usageError("--file %q: %q is no mode", text, modeText).WithHint("write it in octal, such as 0600")
			}
			f.Mode = uint32(mode)
		}
		files = append(files, f)
	}
	return files, nil
}

// check gives the check that the flags ask for; nil when they ask for none.
func (h *healthFlags) check() (*blixardv1.HealthCheck, error) {
	c := &blixardv1.HealthCheck{Retries: h.retries, Keep: h.keep}
	probes := 0
	if h.cmd != "" {
		probes++
		c.Probe = &blixardv1.HealthCheck_Exec{Exec: &blixardv1.HealthExec{Command: []string{"/bin/sh", "-c", h.cmd}}}
	}
	if h.http != "" {
		probes++
		portText, path, _ := strings.Cut(h.http, "/")
		port, err := strconv.ParseUint(portText, 10, 16)
		if err != nil || port == 0 {
			return nil, usageError("--health-http %q is not PORT or PORT/PATH", h.http).WithHint("write --health-http 8080/ready")
		}
		c.Probe = &blixardv1.HealthCheck_Http{Http: &blixardv1.HealthHTTP{Port: uint32(port), Path: "/" + path}}
	}
	if h.tcp != 0 {
		probes++
		c.Probe = &blixardv1.HealthCheck_TcpPort{TcpPort: h.tcp}
	}
	if h.agent {
		probes++
		c.Probe = &blixardv1.HealthCheck_Agent{Agent: true}
	}
	if probes > 1 {
		return nil, usageError("the VM has %d checks", probes).WithHint("give one of --health-cmd, --health-http, --health-tcp and --health-agent")
	}
	for _, d := range []struct {
		from durationFlag
		to   **durationpb.Duration
	}{{h.interval, &c.Interval}, {h.timeout, &c.Timeout}, {h.startTime, &c.StartPeriod}} {
		if d.from != 0 {
			*d.to = durationpb.New(time.Duration(d.from))
		}
	}
	if probes == 0 {
		if h.interval != 0 || h.timeout != 0 || h.startTime != 0 || h.retries != 0 || h.keep {
			return nil, usageError("there is nothing to check").WithHint("add --health-cmd, --health-http, --health-tcp or --health-agent")
		}
		return nil, nil
	}
	return c, nil
}

// applyAttached is apply for networks, ports and volumes.
func (s *specFlags) applyAttached(spec *blixardv1.VMSpec, given func(string) bool) error {
	if given("network") && len(s.networks) > 0 {
		spec.Networks, spec.NoNetwork = nil, false
		for _, text := range s.networks {
			if text == "none" {
				spec.NoNetwork = true
				continue
			}
			name, address, _ := strings.Cut(text, ":")
			spec.Networks = append(spec.Networks, &blixardv1.NetworkAttachment{Network: name, Ipv4: address})
		}
	}
	if given("publish") {
		ports, err := parsePorts(s.publish)
		if err != nil {
			return err
		}
		spec.Ports = ports
	}
	if given("volume") {
		volumes, err := parseVolumes(s.volumes)
		if err != nil {
			return err
		}
		spec.Volumes = volumes
	}
	return nil
}

// portRangeMax bounds a range of ports: as many as a VM may publish.
const portRangeMax = 64

// parsePorts reads HOST:GUEST and FIRST-LAST:FIRST-LAST, with /tcp or /udp.
func parsePorts(list []string) ([]*blixardv1.PublishedPort, error) {
	var ports []*blixardv1.PublishedPort
	for _, text := range list {
		bad := func() *problem.Error {
			return usageError("-p %q is not HOST:GUEST", text).WithHint("write -p 8080:80, or -p 5353:53/udp")
		}
		pair, word, hasWord := strings.Cut(text, "/")
		protocol := blixardv1.Protocol_tcp
		if hasWord {
			if protocol = blixardv1.Protocol_Enum(blixardv1.Protocol_Enum_value[strings.ToLower(word)]); protocol == 0 {
				return nil, badWord("-p "+text+": protocol", word, "tcp", "udp")
			}
		}
		hostText, guestText, found := strings.Cut(pair, ":")
		if !found {
			return nil, bad()
		}
		hostFirst, hostLast, ok := portRange(hostText)
		guestFirst, guestLast, ok2 := portRange(guestText)
		if !ok || !ok2 || hostLast-hostFirst != guestLast-guestFirst {
			return nil, bad()
		}
		if hostLast-hostFirst >= portRangeMax {
			return nil, usageError("-p %s: %d ports are too many", text, hostLast-hostFirst+1).WithHint("a VM publishes at most %d", portRangeMax)
		}
		for k := range hostLast - hostFirst + 1 {
			ports = append(ports, &blixardv1.PublishedPort{HostPort: hostFirst + k, GuestPort: guestFirst + k, Protocol: protocol})
		}
	}
	return ports, nil
}

func portRange(text string) (first, last uint32, ok bool) {
	a, b, found := strings.Cut(text, "-")
	if !found {
		b = a
	}
	x, err := strconv.ParseUint(a, 10, 16)
	y, err2 := strconv.ParseUint(b, 10, 16)
	return uint32(x), uint32(y), err == nil && err2 == nil && x > 0 && x <= y
}

// parseVolumes reads NAME:PATH and NAME:PATH:ro.
func parseVolumes(list []string) ([]*blixardv1.VolumeAttachment, error) {
	var volumes []*blixardv1.VolumeAttachment
	for _, text := range list {
		name, rest, found := strings.Cut(text, ":")
		path, mode, hasMode := strings.Cut(rest, ":")
		if !found || !strings.HasPrefix(path, "/") || hasMode && mode != "ro" && mode != "rw" {
			return nil, usageError("-v %q is not NAME:PATH", text).WithHint("write -v data:/var/lib/data, or -v data:/srv:ro to read only")
		}
		if name == "" || strings.ContainsAny(name, "/.") {
			return nil, usageError("-v %q: %q is no name of a volume", text, name).
				WithHint("directories of the host can't be attached: make a volume with `blixard volume create`, or copy files with `blixard vm cp`")
		}
		volumes = append(volumes, &blixardv1.VolumeAttachment{Volume: name, Path: filepath.Clean(path), ReadOnly: mode == "ro"})
	}
	return volumes, nil
}
