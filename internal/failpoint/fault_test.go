package failpoint

import (
	"errors"
	"testing"
	"time"
)

func TestDiskFault(t *testing.T) {
	for _, c := range []struct {
		text, point string
		wait        time.Duration
		err         error
	}{
		{"", "append.sync", 0, nil},
		{"append.sync 2s\n", "append.sync", 2 * time.Second, nil},
		{"append.sync 2s", "append.write", 0, nil},
		{"append.sync fail", "append.sync", 0, errDisk},
		{"append.sync", "append.sync", 0, errDisk},
	} {
		if wait, err := diskFault(c.text, c.point); wait != c.wait || !errors.Is(err, c.err) {
			t.Errorf("%q at %s: %v, %v", c.text, c.point, wait, err)
		}
	}
}
