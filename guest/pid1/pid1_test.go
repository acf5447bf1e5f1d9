//go:build linux

package pid1

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/blixard/blixard/guest/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait of these tests.
const patience = 30 * time.Second

func write(t testing.TB, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func TestLookPath(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a/tool", "", 0o755)
	write(t, dir+"/b/tool", "", 0o755)
	write(t, dir+"/b/plain", "", 0o644)
	write(t, dir+"/c/plain", "", 0o755)
	if err := os.Mkdir(dir+"/a/folder", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		program, path string
		want          string
		code          int
	}{
		"first wins":             {"tool", dir + "/a:" + dir + "/b", dir + "/a/tool", 0},
		"missing directory":      {"tool", dir + "/none:" + dir + "/b", dir + "/b/tool", 0},
		"executable after plain": {"plain", dir + "/b:" + dir + "/c", dir + "/c/plain", 0},
		"relative to the dir":    {"tool", "b", dir + "/b/tool", 0},
		"empty is the dir":       {"tool", ":" + dir + "/none", "", wire.CodeNotFound},
		"with a slash":           {"./x/y", dir + "/a", "./x/y", 0},
		"not executable":         {"plain", dir + "/b", "", wire.CodeNotExecutable},
		"a directory":            {"folder", dir + "/a", "", wire.CodeNotFound},
		"nowhere":                {"tool", "", "", wire.CodeNotFound},
	} {
		got, err := lookPath(c.program, c.path, dir)
		if got != c.want || codeOf(err) != c.code {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// codeOf is the exit code in an error, zero for none.
func codeOf(err error) int {
	var p *wire.Problem
	if errors.As(err, &p) {
		return p.ExitCode
	}
	return 0
}

func TestEnvironment(t *testing.T) {
	who := account{home: "/home/u"}
	for name, c := range map[string]struct{ got, want []string }{
		"empty":            {completeEnv(nil, who, false), []string{"PATH=" + defaultPath, "HOME=/home/u"}},
		"terminal":         {completeEnv(nil, who, true), []string{"PATH=" + defaultPath, "HOME=/home/u", "TERM=xterm"}},
		"given":            {completeEnv([]string{"HOME=/x", "PATH=", "TERM=vt"}, who, true), []string{"HOME=/x", "PATH=", "TERM=vt"}},
		"merge":            {mergeEnv([]string{"A=1", "B=2"}, []string{"B=3", "C=4"}), []string{"A=1", "B=3", "C=4"}},
		"merge empties":    {mergeEnv([]string{"A=1", "B=2"}, []string{"A="}), []string{"B=2", "A="}},
		"merge nothing":    {mergeEnv([]string{"A=1"}, nil), []string{"A=1"}},
		"names by a begin": {mergeEnv([]string{"AB=1"}, []string{"A=2"}), []string{"AB=1", "A=2"}},
	} {
		if !slices.Equal(c.got, c.want) {
			t.Errorf("%s: %q, want %q", name, c.got, c.want)
		}
	}
	if v := envValue([]string{"A=1", "A=2", "AB=3"}, "A"); v != "2" {
		t.Errorf("the last value counts, not %q", v)
	}
}

// Of a merged environment each key has one entry, the extra's where it has one.
func TestMergeEnvProperty(t *testing.T) {
	entry := rapid.Custom(func(t *rapid.T) string {
		return rapid.SampledFrom([]string{"A", "B", "AB", "C"}).Draw(t, "key") + "=" + rapid.StringMatching("[a-c=]{0,3}").Draw(t, "value")
	})
	rapid.Check(t, func(t *rapid.T) {
		unique := rapid.SliceOfDistinct(entry, func(s string) string { k, _, _ := strings.Cut(s, "="); return k })
		base, extra := unique.Draw(t, "base"), unique.Draw(t, "extra")
		got := mergeEnv(base, extra)
		for _, e := range append(base, extra...) {
			key, _, _ := strings.Cut(e, "=")
			want := envValue(base, key)
			if hasKey(extra, key) {
				want = envValue(extra, key)
			}
			n := 0
			for _, g := range got {
				if strings.HasPrefix(g, key+"=") {
					n++
				}
			}
			if n != 1 || envValue(got, key) != want {
				t.Fatalf("%q is %d times in %q, as %q", key, n, got, envValue(got, key))
			}
		}
	})
}

func TestLookupUser(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nshort:x:1\nweb:x:33:34:web:/var/www:/bin/false\n"+
		"bad:x:minus:1:x:/:/x\nhomeless:x:40:41:::\n", 0o644)
	write(t, root+"/etc/group", "root:x:0:\nweb:x:34:\nlogs:x:50:web,other\ntty:x:5:other,web\nodd:x:five:web\nonly:three\n", 0o644)
	for spec, want := range map[string]account{
		"":          {name: "root", home: "/root"},
		"root":      {name: "root", home: "/root"},
		"0":         {name: "root", home: "/root"},
		"web":       {uid: 33, gid: 34, groups: []uint32{50, 5}, name: "web", home: "/var/www"},
		"33":        {uid: 33, gid: 34, groups: []uint32{50, 5}, name: "web", home: "/var/www"},
		"web:logs":  {uid: 33, gid: 50, name: "web", home: "/var/www"},
		"web:7":     {uid: 33, gid: 7, name: "web", home: "/var/www"},
		"1000":      {uid: 1000, home: "/"},
		"1000:1001": {uid: 1000, gid: 1001, home: "/"},
		":logs":     {gid: 50, name: "root", home: "/root"},
		"homeless":  {uid: 40, gid: 41, name: "homeless", home: "/"},
	} {
		got, err := lookupUser(root, spec)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%q: %+v, %v; want %+v", spec, got, err, want)
		}
	}
	for _, spec := range []string{"nobody", "bad", "short", "web:none", "-1", "4294967296", "33:odd"} {
		if got, err := lookupUser(root, spec); codeOf(err) != wire.CodeNotExecutable {
			t.Errorf("%q: %+v, %v", spec, got, err)
		}
	}
	bare, err := lookupUser(t.TempDir(), "0")
	if err != nil || bare.home != "/root" || bare.name != "root" {
		t.Errorf("root of an image without accounts: %+v, %v", bare, err)
	}
}

func FuzzScanAccounts(f *testing.F) {
	f.Add("root:x:0:0:root:/root:/bin/sh\n", "root")
	f.Add(":::::::\n::", "a:b")
	f.Fuzz(func(t *testing.T, passwd, spec string) {
		root := t.TempDir()
		write(t, root+"/etc/passwd", passwd, 0o644)
		write(t, root+"/etc/group", passwd, 0o644)
		a, err := lookupUser(root, spec)
		if err == nil && a.home == "" || err != nil && codeOf(err) == 0 {
			t.Errorf("%+v, %v", a, err)
		}
	})
}

func TestExitCodes(t *testing.T) {
	for status, want := range map[syscall.WaitStatus][2]int{
		0: {0, 0}, 0x100: {1, 0}, 0xff00: {255, 0}, 9: {137, 9}, 15: {143, 15}, 0x80 | 6: {134, 6},
	} {
		if code, signal := exitCode(status); [2]int{code, signal} != want {
			t.Errorf("%#x: %d, %d", status, code, signal)
		}
	}
	for status, want := range map[syscall.WaitStatus]string{
		1: "reboot 0 0", 2: "poweroff 0 0", 0: "exit 0 0", 0x300: "exit 3 0", 9: "exit 137 9",
	} {
		if reason, code, signal := initExit(status); fmt.Sprintf("%s %d %d", reason, code, signal) != want {
			t.Errorf("init's %#x: %s %d %d, want %s", status, reason, code, signal, want)
		}
	}
}

func TestStats(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/meminfo", "MemTotal:  1000 kB\nMemFree: 200 kB\nMemAvailable: 500 kB\nodd\n", 0o644)
	write(t, dir+"/loadavg", "0.50 1.25 2.00 1/90 1234\n", 0o644)
	write(t, dir+"/uptime", "12.34 5.00\n", 0o644)
	write(t, dir+"/stat", "cpu  1 2 3 100 200 4 5 6 0 0\ncpu0 1 1 1 50 100 2 2 3 0 0\ncpu1 0 1 2 50 100 2 3 3 0 0\nintr 1 2 3 4 5 6 7 8 9\n", 0o644)
	for _, d := range []string{"1", "22", "self", "sys"} {
		if err := os.Mkdir(dir+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got := readStats(dir)
	if got.RootTotal == 0 {
		t.Error("nothing of the root's size")
	}
	got.RootTotal, got.RootFree = 0, 0
	want := wire.Stats{
		MemTotal: 1000 << 10, MemFree: 200 << 10, MemAvailable: 500 << 10, Load: [3]float64{0.5, 1.25, 2},
		Processes: 2, UptimeMS: 12340, CPUBusyMS: 210, CPUs: 2,
	}
	if got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if empty := readStats(dir + "/none"); empty.MemTotal != 0 || empty.Processes != 0 || empty.CPUs != 0 {
		t.Errorf("of nothing: %+v", empty)
	}
}

func FuzzStats(f *testing.F) {
	f.Add("MemTotal: 1 kB\ncpu 1 2 3 4 5 6 7 8 9\n1 2 3 4")
	f.Add("cpu0 99999999999999999999 - - - - - - -\n")
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		for _, name := range []string{"meminfo", "loadavg", "uptime", "stat"} {
			write(t, dir+"/"+name, text, 0o644)
		}
		if s := readStats(dir); s.Processes != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestModules(t *testing.T) {
	dir := t.TempDir()
	if err := loadModules(dir + "/none"); err != nil {
		t.Errorf("no list: %v", err)
	}
	write(t, dir+"/list", dir+"/a.ko\n"+dir+"/missing.ko\n"+dir+"/b.ko\n", 0o644)
	write(t, dir+"/a.ko", "no module", 0o644)
	write(t, dir+"/b.ko", "none either", 0o644)
	err := loadModules(dir + "/list")
	if err == nil {
		t.Fatal("no error")
	}
	// One that fails does not stop the others, and the order is the list's.
	var at []int
	for _, name := range []string{"a.ko", "missing.ko", "b.ko"} {
		at = append(at, strings.Index(err.Error(), name))
	}
	if at[0] < 0 || !slices.IsSorted(at) {
		t.Errorf("%v", err)
	}
	if err := loadModules(dir); err == nil {
		t.Error("a directory as the list: no error")
	}
}

func TestMountOptions(t *testing.T) {
	for options, want := range map[string]struct {
		flags uintptr
		data  string
	}{
		"":                               {0, ""},
		"defaults":                       {0, ""},
		"ro,noatime":                     {unix.MS_RDONLY | unix.MS_NOATIME, ""},
		"nodev,data=ordered,nosuid,x":    {unix.MS_NODEV | unix.MS_NOSUID, "data=ordered,x"},
		",,noexec,,lazytime,sync,":       {unix.MS_NOEXEC | unix.MS_LAZYTIME | unix.MS_SYNCHRONOUS, ""},
		"relatime,dirsync,nodiratime,rw": {unix.MS_RELATIME | unix.MS_DIRSYNC | unix.MS_NODIRATIME, ""},
	} {
		if flags, data := splitOptions(options); flags != want.flags || data != want.data {
			t.Errorf("%q: %#x, %q", options, flags, data)
		}
	}
}

func TestFindDevice(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/vda/serial", "first\n", 0o644)
	write(t, dir+"/vdb/serial", "second\x00\x00 ", 0o644)
	write(t, dir+"/loop0/size", "0\n", 0o644)
	for serial, want := range map[string]string{"first": "/dev/vda", "second": "/dev/vdb", "third": "", "sec": ""} {
		if got := bySerial(dir, serial); got != want {
			t.Errorf("%q: %q", serial, got)
		}
	}
	if got, err := findDevice("/dev/null", 0); got != "/dev/null" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	for _, d := range []string{"/dev/none-such", "serial:none-such"} {
		if _, err := findDevice(d, 0); err == nil || !strings.Contains(err.Error(), d) {
			t.Errorf("%s: %v", d, err)
		}
	}
	if err := mountDisk(wire.Disk{Device: dir, FSType: "no-such-fs"}, dir+"/at", 0); err == nil || !strings.Contains(err.Error(), "no-such-fs") {
		t.Errorf("mount of no file system: %v", err)
	}
}

func TestFindPort(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/vport0p1/name", "other\n", 0o644)
	write(t, dir+"/vport0p2/name", wire.PortName+"\n", 0o644)
	write(t, dir+"/vport0p3/id", "x", 0o644)
	if got := findPort(dir, wire.PortName); got != "/dev/vport0p2" {
		t.Errorf("%q", got)
	}
	if got := findPort(dir+"/none", wire.PortName); got != "" {
		t.Errorf("%q", got)
	}
}

func TestSmallFiles(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/two", "one\ntwo\n", 0o644)
	write(t, dir+"/large", strings.Repeat("x", 2*smallFile), 0o644)
	if got := readLine(dir + "/two"); got != "one" {
		t.Errorf("%q", got)
	}
	if got := readSmall(dir + "/large"); len(got) != smallFile {
		t.Errorf("%d bytes", len(got))
	}
	if readSmall(dir) != "" || readSmall(dir+"/none") != "" || readLine(dir+"/none") != "" || listSmall(dir+"/two") != nil {
		t.Error("something of nothing")
	}
	if names := listSmall(dir); len(names) != 2 {
		t.Errorf("%q", names)
	}
	if err := makeDir(dir + "/a/b/c"); err != nil || !exists(dir+"/a/b/c") {
		t.Errorf("%v", err)
	}
	if err := makeDir(dir + "/a/b/c"); err != nil {
		t.Errorf("once more: %v", err)
	}
	if err := makeDir(dir + "/two/x"); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
}

func TestRemoveBelow(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a/b/file", "x", 0o644)
	write(t, dir+"/keep", "x", 0o644)
	outside := t.TempDir()
	write(t, outside+"/safe", "x", 0o644)
	if err := os.Symlink(outside, dir+"/a/link"); err != nil {
		t.Fatal(err)
	}
	fd, err := openDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	removeBelow(fd, st.Dev+1)
	if !exists(dir + "/keep") {
		t.Error("removed what is of another file system")
	}
	removeBelow(fd, st.Dev)
	if names := listSmall(dir); len(names) != 0 || !exists(outside+"/safe") {
		t.Errorf("left %q", names)
	}
	if _, err := openDir(dir + "/none"); err == nil {
		t.Error("opened nothing")
	}
	// Only a file system in memory is emptied.
	(&root{old: fd}).forget()
	var none *root
	if err := none.clean(); err != nil {
		t.Errorf("clean of no root: %v", err)
	}
}

// A reaper of process 1 takes orphans too; here it has children of its own only.
func TestReaperCollects(t *testing.T) {
	exe := selfAs(t, "collect")
	out, err := exe.CombinedOutput()
	if err != nil || string(out) != "ended 3, none left\n" {
		t.Errorf("%q, %v", out, err)
	}
}

// selfAs runs this test binary as a program of its own: some of what is tested waits for all children.
func selfAs(t *testing.T, what string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe, "-test.run", "TestHelper", "-test.v=false")
	cmd.Env = append(os.Environ(), "BLIXARD_TEST_HELPER="+what)
	return cmd
}

// TestHelper is the program of selfAs; as a test it checks that it was not meant.
func TestHelper(t *testing.T) {
	switch what := os.Getenv("BLIXARD_TEST_HELPER"); what {
	case "":
		if code := Main(); code != 2 {
			t.Errorf("Main outside of a machine gives %d", code)
		}
		if code := stage(nil); code != wire.CodeNotExecutable {
			t.Errorf("a stage without a program gives %d", code)
		}
	case "collect":
		os.Exit(collectOne())
	}
}

func collectOne() int {
	r := newReaper(false)
	run, err := r.startCommand(command{argv: []string{"sh", "-c", "exit 3"}})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	var info unix.Siginfo
	for unix.Waitid(unix.P_PID, run.pid, &info, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	if !r.collect() {
		fmt.Println("children are left")
	}
	<-run.done
	code, _ := exitCode(run.status)
	fmt.Printf("ended %d, none left\n", code)
	r.signal(run.process, syscall.SIGKILL, true) // is gone: nobody must be hit
	return 0
}

func TestStartCommandRefuses(t *testing.T) {
	r := newReaper(true)
	dir := t.TempDir()
	write(t, dir+"/file", "", 0o644)
	for name, c := range map[string]struct {
		c    command
		code int
	}{
		"nothing":           {command{}, wire.CodeNotFound},
		"empty name":        {command{argv: []string{""}}, wire.CodeNotFound},
		"working directory": {command{argv: []string{"true"}, dir: dir + "/file/x"}, wire.CodeNotExecutable},
		"no such program":   {command{argv: []string{"none-such"}}, wire.CodeNotFound},
		"no such path":      {command{argv: []string{dir + "/none"}}, wire.CodeNotFound},
	} {
		if _, err := r.startCommand(c.c); codeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]struct {
		argv []string
		code int
	}{
		"no such init":     {[]string{dir + "/none"}, wire.CodeNotFound},
		"below a file":     {[]string{dir + "/file/init"}, wire.CodeNotFound},
		"init not in PATH": {[]string{"none-such-init"}, wire.CodeNotFound},
	} {
		if _, err := r.startInit(c.argv, nil, ""); codeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Chmod(dir+"/file", 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.startInit([]string{dir + "/file"}, nil, dir); codeOf(err) != wire.CodeNotExecutable {
		t.Errorf("init not executable: %v", err)
	}
	if _, err := r.startBeside(-1, command{argv: []string{"true"}}); codeOf(err) != wire.CodeNotExecutable {
		t.Errorf("beside nobody: %v", err)
	}
}

// Commands see the files and processes of the process they are started beside.
func TestStartBeside(t *testing.T) {
	r := newReaper(true)
	run, err := r.startBeside(os.Getpid(), command{argv: []string{"sh", "-c", "echo beside; exit 4"}})
	if errors.As(err, new(*wire.Problem)) && os.Geteuid() != 0 {
		return // joining takes a privilege
	}
	if err != nil {
		t.Fatal(err)
	}
	defer run.close()
	var out bytes.Buffer
	run.pump(run.out, func(p []byte) { out.Write(p) })
	<-run.done
	r.wg.Wait()
	if code, _ := exitCode(run.status); code != 4 || out.String() != "beside\n" {
		t.Errorf("%q, exit code %d", out.String(), code)
	}
}

// The output keeps the last ReplayBytes, tells a slow reader what it lost, and waits for a lossless one.
func TestOutputKeepsTheEnd(t *testing.T) {
	o := newOutput()
	lossy, lossless := o.attach(0, false), o.attach(0, true)
	piece := bytes.Repeat([]byte{'x'}, 16<<10)
	const pieces = wire.ReplayBytes/(16<<10) + 4
	written := make(chan struct{})
	go func() {
		defer close(written)
		for range pieces {
			o.write(wire.FrameStdout, piece)
		}
		o.close()
	}()
	buf, got := make([]byte, wire.MaxData), 0
	for {
		_, n, lost, ok := lossless.next(buf)
		if !ok {
			break
		}
		if got += n; lost != 0 {
			t.Errorf("the lossless reader lost %d bytes", lost)
		}
	}
	<-written
	if got != pieces*len(piece) {
		t.Errorf("%d bytes of %d", got, pieces*len(piece))
	}
	_, n, lost, ok := lossy.next(buf)
	if !ok || lost != 4*int64(len(piece)) || n == 0 {
		t.Errorf("the slow reader got %d bytes, lost %d, %v", n, lost, ok)
	}
	lossy.detach()
	if _, _, _, ok := lossy.next(buf); ok || !lossy.isGone() {
		t.Error("a detached reader got more")
	}
}
