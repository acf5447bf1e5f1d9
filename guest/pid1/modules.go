//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// modulesList names the modules to load, one path a line, in the order of their needs. A kernel with all
// built in comes without the file.
const modulesList = "/blixard/modules"

// loadModules loads the modules of a list. A module that is there already is no error; one that can't be
// loaded does not stop the others, since a machine may lack the device for it.
func loadModules(list string) error {
	if !exists(list) {
		return nil
	}
	b, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	var failed []error
	for path := range strings.FieldsSeq(string(b)) {
		if err := loadModule(path); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func loadModule(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}
