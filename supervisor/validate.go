package supervisor

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// Limits of a SpawnRequest. Those that the .proto states too are checked here by
// hand, because the machinery that reads them from there costs more memory than
// all the rest of a supervisor.
const (
	argvMax          = 512
	envMax           = 128
	listenersMax     = 8
	tapsMax          = 8
	filesMax         = 32
	readPathsMax     = 64
	metadataMax      = 64
	stringBytesMax   = 128 << 10 // the kernel's limit of one argument
	requestBytesMax  = 1 << 20
	metadataBytesMax = 16 << 10
	signalMax        = 64
	pathBytesMax     = 4096 // PATH_MAX
)

// Users and groups of jailed processes: neither root, nor the system's own, nor
// the two that stand for nobody.
const (
	uidMin, uidMax = 1000, 1<<31 - 1
	nobody16       = 1<<16 - 1
	nobody         = nobody16 - 1
)

// Bounds of a jail's limits: less than these stops a process before it has
// started, more can't be meant.
const (
	jailMemoryMin = 1 << 20
	jailMemoryMax = 1 << 42
	jailPidsMax   = 1 << 16
	jailCPUMax    = 100 * 1024
)

var (
	processIDPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,126}[a-z0-9])?$`)
	tapPattern       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,14}$`)
	listenerPattern  = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9_.]{0,99}$`)
)

func invalid(format string, args ...any) error {
	return problem.New(problem.Invalid, "supervisor.request", "spawn: "+format, args...)
}

// validate checks a request in form; whether files exist is seen on use.
func validate(r *blixardv1.SpawnRequest) error {
	switch {
	case !processIDPattern.MatchString(r.GetProcessId()):
		return invalid("process id %q does not match %s", r.GetProcessId(), processIDPattern)
	case len(r.GetArgv()) == 0 || len(r.GetArgv()) > argvMax:
		return invalid("argv has %d elements, 1 to %d are allowed", len(r.GetArgv()), argvMax)
	case len(r.GetEnv()) > envMax:
		return invalid("env has %d elements, at most %d are allowed", len(r.GetEnv()), envMax)
	case len(r.GetListeners()) > listenersMax:
		return invalid("%d listeners, at most %d are allowed", len(r.GetListeners()), listenersMax)
	}
	for name, path := range map[string]string{
		"argv[0]": r.GetArgv()[0], "working_dir": r.GetWorkingDir(), "log_path": r.GetLogPath(),
	} {
		if !cleanPath(path) {
			return invalid("%s %q is not a clean absolute path", name, path)
		}
	}
	for i, s := range r.GetArgv() {
		if strings.ContainsRune(s, 0) || len(s) > stringBytesMax {
			return invalid("argv[%d] has a zero byte or more than %d bytes", i, stringBytesMax)
		}
	}
	for i, s := range r.GetEnv() {
		if strings.IndexByte(s, '=') < 1 || strings.ContainsRune(s, 0) || len(s) > stringBytesMax {
			return invalid("env[%d] is not NAME=VALUE of at most %d bytes", i, stringBytesMax)
		}
	}
	if err := validateNames(r); err != nil {
		return err
	}
	if err := validateDescriptors(r); err != nil {
		return err
	}
	return validateJail(r.GetJail(), os.Geteuid() == 0)
}

func cleanPath(path string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path && path != "/" && len(path) < pathBytesMax &&
		!strings.ContainsRune(path, 0)
}

// validateDescriptors checks what a process is to be handed opened.
func validateDescriptors(r *blixardv1.SpawnRequest) error {
	if n := len(r.GetTaps()); n > tapsMax {
		return invalid("%d taps, at most %d are allowed", n, tapsMax)
	}
	if n := len(r.GetFiles()); n > filesMax {
		return invalid("%d files, at most %d are allowed", n, filesMax)
	}
	seen := make(map[string]bool, tapsMax)
	for _, name := range r.GetTaps() {
		if !tapPattern.MatchString(name) || seen[name] {
			return invalid("tap %q does not match %s or is there twice", name, tapPattern)
		}
		seen[name] = true
	}
	for i, f := range r.GetFiles() {
		if !cleanPath(f.GetPath()) {
			return invalid("files[%d] %q is not a clean absolute path", i, f.GetPath())
		}
	}
	return nil
}

// validateJail checks a jail, if there is one. A user of its own is needed where
// there is a choice: of root.
func validateJail(j *blixardv1.Jail, root bool) error {
	if j == nil {
		return nil
	}
	for name, id := range map[string]uint32{"uid": j.GetUid(), "gid": j.GetGid()} {
		if root && (id < uidMin || id > uidMax || id == nobody || id == nobody16) {
			return invalid("jail: %s %d is not from %d to %d, or is nobody's", name, id, uidMin, uidMax)
		}
	}
	switch m := j.GetMemoryBytes(); {
	case m != 0 && (m < jailMemoryMin || m > jailMemoryMax):
		return invalid("jail: %d bytes of memory, %d to %d are allowed", m, jailMemoryMin, uint64(jailMemoryMax))
	case j.GetPidsMax() > jailPidsMax:
		return invalid("jail: %d processes, at most %d are allowed", j.GetPidsMax(), jailPidsMax)
	case j.GetCpuQuotaPercent() > jailCPUMax:
		return invalid("jail: %d %% of a processor, at most %d are allowed", j.GetCpuQuotaPercent(), jailCPUMax)
	case len(j.GetReadPaths()) > readPathsMax:
		return invalid("jail: %d paths to read, at most %d are allowed", len(j.GetReadPaths()), readPathsMax)
	}
	for i, p := range j.GetReadPaths() {
		if !cleanPath(p) {
			return invalid("jail: read_paths[%d] %q is not a clean absolute path", i, p)
		}
	}
	return nil
}

func validateNames(r *blixardv1.SpawnRequest) error {
	seen := make(map[string]bool, listenersMax)
	for _, name := range r.GetListeners() {
		if !listenerPattern.MatchString(name) || seen[name] {
			return invalid("listener %q does not match %s or is there twice", name, listenerPattern)
		}
		seen[name] = true
	}
	total := 0
	for k, v := range r.GetMetadata() {
		total += len(k) + len(v)
	}
	if len(r.GetMetadata()) > metadataMax || total > metadataBytesMax {
		return invalid("metadata has %d entries of %d bytes, at most %d of %d are allowed",
			len(r.GetMetadata()), total, metadataMax, metadataBytesMax)
	}
	return nil
}
