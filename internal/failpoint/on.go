//go:build failpoints

package failpoint

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	armed = os.Getenv(Env)
	hits  atomic.Int64
)

// Hit marks a point and ends the process there if it is armed.
func Hit(name string) {
	if !slices.Contains(Points, name) && !slices.Contains(VolumePoints, name) {
		panic("failpoint: " + name + " is not in the list of points")
	}
	want, nth, _ := strings.Cut(armed, ":")
	if want != name {
		return
	}
	n, err := strconv.ParseInt(nth, 10, 64)
	if err != nil {
		n = 1
	}
	if hits.Add(1) != n {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // until the kernel has done it
}

// Disk is the hook of the log's disk: it does what the file of DiskEnv says now. A
// file that is not there, or says another point, does nothing.
var Disk = disk(os.Getenv(DiskEnv))

func disk(file string) func(point string) error {
	if file == "" {
		return nil
	}
	return func(point string) error {
		text, _ := os.ReadFile(file)
		wait, err := diskFault(string(text), point)
		<-time.After(wait)
		return err
	}
}
