package supervisor

import (
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
	metadataMax      = 64
	stringBytesMax   = 128 << 10 // the kernel's limit of one argument
	requestBytesMax  = 1 << 20
	metadataBytesMax = 16 << 10
	signalMax        = 64
)

var (
	processIDPattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,126}[a-z0-9])?$`)
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
		if !filepath.IsAbs(path) || filepath.Clean(path) != path || path == "/" || strings.ContainsRune(path, 0) {
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
	return validateNames(r)
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
