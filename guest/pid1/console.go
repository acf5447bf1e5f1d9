//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// console is the machine's console: the log of what the command writes, and, for a command with a
// terminal, a view of that terminal. Writes wait for the device, so a slow console slows its writer.
type console struct {
	mu sync.Mutex
	f  *os.File
}

// Write implements io.Writer. A console that fails takes everything and shows nothing: there is no place
// left to complain.
func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = c.f.Write(p)
	return len(p), nil
}

// say prints a line for people.
func (c *console) say(format string, args ...any) {
	_, _ = fmt.Fprintf(c, "blixard-guest: "+format+"\r\n", args...)
}

// join lets the console type into a terminal for as long as the machine lives. A console that is no
// terminal itself only shows.
func (c *console) join(run *running) error {
	_, err := makeRaw(c.f)
	if errors.Is(err, unix.ENOTTY) {
		return nil
	}
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 1<<10)
		for {
			n, err := c.f.Read(buf)
			if err != nil {
				return
			}
			run.writeInput(buf[:n], func() bool { return true })
		}
	}()
	return nil
}
