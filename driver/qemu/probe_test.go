package qemu

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/driver/drivertest"
	"github.com/blixard/blixard/internal/problem"
)

func program(t *testing.T) string {
	t.Helper()
	p, err := find(DefaultProgram)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestTinyGuestRuns in emulation, as it has to under KVM.
func TestTinyGuestRuns(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), drivertest.Timeout)
	defer cancel()
	if err := runTiny(ctx, program(t), driver.AcceleratorTCG, "max"); err != nil {
		t.Error(err)
	}
	if err := runTiny(ctx, "/bin/false", driver.AcceleratorTCG, "max"); err == nil || !strings.Contains(err.Error(), "code 1") {
		t.Errorf("%v", err)
	}
	if name, reason := accelerator(ctx, program(t), "/nonexistent"); name != driver.AcceleratorTCG || !strings.Contains(reason, "can't be opened") {
		t.Errorf("%s, %s", name, reason)
	}
	// The device is one that can be opened, the program one that is no QEMU.
	if name, reason := accelerator(ctx, "/bin/false", "/dev/null"); name != driver.AcceleratorTCG || !strings.Contains(reason, "did not run under KVM") {
		t.Errorf("%s, %s", name, reason)
	}
}

// TestOddPrograms: what is no QEMU, or an old one, is named.
func TestOddPrograms(t *testing.T) {
	for name, tc := range map[string]struct{ script, code string }{
		"missing":          {"", "driver.qemu_missing"},
		"fails":            {"exit 3", "driver.qemu_odd"},
		"says nothing":     {"exit 0", "driver.qemu_odd"},
		"old":              {`echo "QEMU emulator version 6.2.0"`, "driver.qemu_too_old"},
		"without firmware": {`case "$1" in --version) echo "QEMU emulator version 9.1.0";; *) exit 1;; esac`, "driver.qemu_odd"},
		"odd firmware":     {`case "$1" in --version) echo "QEMU emulator version 9.1.0";; *) echo none;; esac`, "driver.qemu_odd"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "qemu")
			if tc.script != "" {
				if err := os.WriteFile(path, []byte("#!/bin/sh\n"+tc.script+"\n"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			_, err := New(Config{Program: path}).Probe(t.Context())
			if !problem.Is(err, problem.Unavailable) || !problem.HasCode(err, tc.code) {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestDataPaths are all that QEMU reads: the census boots with nothing else.
func TestDataPaths(t *testing.T) {
	paths, err := dataPaths(t.Context(), program(t))
	if err != nil || len(paths) == 0 {
		t.Fatalf("%q, %v", paths, err)
	}
	for _, p := range paths {
		if st, err := os.Stat(p); err != nil || !st.IsDir() || filepath.Clean(p) != p {
			t.Errorf("%s: %v", p, err)
		}
	}
}
