package jail

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestParseList(t *testing.T) {
	got, err := parseList("\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n" +
		"\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n\tlibm.so => /a/../lib/libm.so\n\tstatically linked\n\n")
	if want := []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2", "/lib/libm.so"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	for _, s := range []string{"\tlibx.so => not found\n", strings.Repeat("x", listBytesMax+1)} {
		if got, err := parseList(s); err == nil {
			t.Errorf("%q", got)
		}
	}
}

func FuzzParseList(f *testing.F) {
	f.Add("\tlibc.so.6 => /lib/libc.so.6 (0x1)\n/lib64/ld.so\n=> => /x\n")
	f.Fuzz(func(t *testing.T, s string) {
		libs, err := parseList(s)
		for _, l := range libs {
			if err != nil || !filepath.IsAbs(l) || filepath.Clean(l) != l {
				t.Fatalf("%q, %v", l, err)
			}
		}
	})
}

func TestLibraries(t *testing.T) {
	var l Libraries
	libs, err := l.Of(t.Context(), "/bin/sh")
	if err != nil || !slices.ContainsFunc(libs, func(p string) bool { return strings.Contains(p, "libc.so") || strings.Contains(p, "musl") }) {
		t.Errorf("%q, %v", libs, err)
	}
	again, err := l.Of(t.Context(), "/bin/sh")
	if err != nil || unsafe.SliceData(again) != unsafe.SliceData(libs) {
		t.Errorf("not remembered: %v", err)
	}
	script := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{script, "/nonexistent", "/"} {
		if libs, err := l.Of(t.Context(), p); err == nil {
			t.Errorf("%s: %q", p, libs)
		}
	}
	if _, err := list(t.Context(), script); err == nil {
		t.Error("a script was listed")
	}
}

func TestRuleset(t *testing.T) {
	for version, want := range map[int]struct {
		size uintptr
		fs   uint64
		net  bool
	}{1: {8, 0x1fff, false}, 2: {8, 0x3fff, false}, 3: {8, 0x7fff, false}, 4: {16, 0x7fff, true}, 5: {16, 0xffff, true}, 6: {24, 0xffff, true}, 7: {24, 0xffff, true}} {
		r := rulesetFor(version, false)
		if r.size(version) != want.size || r.fs != want.fs || (r.net != 0) != want.net || (r.scope != 0) != (version >= versionScope) {
			t.Errorf("version %d: %+v of %d bytes", version, r, r.size(version))
		}
		if rulesetFor(version, true).net != 0 {
			t.Errorf("version %d: the host's network is forbidden", version)
		}
	}
}

func TestAllowed(t *testing.T) {
	c := Config{Program: "/bin/p", Libraries: []string{"/lib/l"}, ReadPaths: []string{"/data", kvm}, Files: []File{{FD: 3, Path: "/disk"}}}
	inside, outside := allowed(c, true), allowed(c, false)
	if len(inside) != 4 || inside["/"] != rightsRead || inside[kvm]&unix.LANDLOCK_ACCESS_FS_IOCTL_DEV == 0 {
		t.Errorf("%v", inside)
	}
	if _, all := outside["/"]; all || len(outside) != 7 || outside["/data"] != rightsRead || outside["/disk"] != unix.LANDLOCK_ACCESS_FS_READ_FILE {
		t.Errorf("%v", outside)
	}
	for _, rules := range []map[string]uint64{inside, outside} {
		for p, rights := range rules {
			if writes := rights&unix.LANDLOCK_ACCESS_FS_WRITE_FILE != 0; writes != (p == kvm || p == "/dev/null") {
				t.Errorf("%s: %x", p, rights)
			}
		}
	}
}

func TestTreeCovers(t *testing.T) {
	tr := &tree{}
	tr.cover("/usr/share")
	tr.note("/usr")
	for p, want := range map[string]bool{"/usr/share": true, "/usr/share/qemu/x": true, "/usr": false, "/usr/shared": false, "/usr/lib": false} {
		if tr.covered(p) != want {
			t.Errorf("%s: %v", p, !want)
		}
	}
}

func TestStepError(t *testing.T) {
	err := step("pivot-root", unix.EINVAL)
	var s *StepError
	if !errors.Is(err, unix.EINVAL) || !errors.As(err, &s) || s.Step != "pivot-root" || err.Error() != "step pivot-root: invalid argument" {
		t.Errorf("%v", err)
	}
	if step("x", nil) != nil {
		t.Error("an error of nothing")
	}
}
