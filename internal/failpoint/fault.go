package failpoint

import (
	"errors"
	"strings"
	"time"
)

var errDisk = errors.New("input/output error")

// diskFault reads what the file of DiskEnv says of a step: how much longer it takes,
// or that it fails.
func diskFault(text, point string) (time.Duration, error) {
	at, what, _ := strings.Cut(strings.TrimSpace(text), " ")
	if at != point || point == "" {
		return 0, nil
	}
	if d, err := time.ParseDuration(what); err == nil {
		return d, nil
	}
	return 0, errDisk
}
