//go:build failpoints

package failpoint

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

var (
	armed = os.Getenv(Env)
	hits  atomic.Int64
)

// Hit marks a point and ends the process there if it is armed.
func Hit(name string) {
	if !slices.Contains(Points, name) {
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
