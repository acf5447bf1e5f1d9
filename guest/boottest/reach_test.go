//go:build linux

package boottest_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/boottest"
	"github.com/blixard/blixard/guest/bundle"
	"github.com/blixard/blixard/internal/problem"
)

// machineOf boots a guest with one of everything and a second drive, and runs a command in it.
func machineOf(t *testing.T, argv ...string) (*boottest.Machine, *guest.Session, boottest.Spec) {
	t.Helper()
	b := boottest.Bundle(t)
	spec := boottest.Spec{
		Kernel: boottest.Kernel(t, b, bundle.KernelOwn), MemoryMiB: 256, Image: image(t, b), Writable: writable(t),
		Volumes: []string{volume(t), volume(t)}, MAC: mac,
	}
	m := boottest.Boot(t, spec)
	s := m.Connect()
	m.Ready(s, equipped(argv...))
	return m, s, spec
}

func powerOff(t *testing.T, m *boottest.Machine, s *guest.Session) guest.Exit {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), boottest.Patience)
	defer cancel()
	if err := s.Stop(ctx, time.Minute); err != nil {
		t.Fatal(err)
	}
	exit := *m.AwaitEvent(s, guest.EventExited).Status.Exit
	m.PowerOff(s)
	return exit
}

func patient(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), boottest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// A server of the guest is reached and probed from the host, and a command runs as the user it is asked to.
func TestReach(t *testing.T) {
	m, s, _ := machineOf(t, "sh", "-c", "mkdir -p /www && echo well >/www/health && exec httpd -f -p 127.0.0.1:8080 -h /www")
	for name, c := range map[string]struct {
		probe guest.Probe
		says  string
	}{
		"http":      {guest.Probe{Port: 8080, Path: "/health"}, ""},
		"http, bad": {guest.Probe{Port: 8080, Path: "/none"}, "404"},
		"tcp":       {guest.Probe{Port: 8080}, ""},
		"nobody":    {guest.Probe{Port: 81}, "refused"},
	} {
		var got guest.ProbeResult
		for begin := time.Now(); time.Since(begin) < boottest.Patience; { // the server may still be starting
			var err error
			if got, err = s.Probe(patient(t), c.probe); err != nil {
				t.Fatal(err)
			}
			if got.OK || c.says != "" && strings.Contains(got.Message, c.says) {
				break
			}
		}
		if got.OK != (c.says == "") || !strings.Contains(got.Message, c.says) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	conn, err := s.Dial(patient(t), 8080)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET /health HTTP/1.0\r\n\r\n"); err != nil {
		t.Error(err)
	}
	if got, err := io.ReadAll(conn); err != nil || !bytes.HasSuffix(got, []byte("\r\n\r\nwell\n")) {
		t.Errorf("%q, %v", got, err)
	}
	_ = conn.Close()
	if _, err := s.Dial(patient(t), 81); !problem.HasCode(err, guest.CodeRefused) {
		t.Errorf("nobody's port: %v", err)
	}
	for _, tty := range []bool{false, true} {
		st, err := s.Exec(patient(t), guest.ExecRequest{
			Argv: []string{"sh", "-c", "id -u; id -g; test -t 0 && stat -c %u $(tty); cat /etc/app/key.pem"}, User: "nobody", TTY: tty,
		})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		exit, err := st.Copy(&out, &out)
		want := "65534\n65534\n" + hidden + "\n"
		if tty {
			want = "65534\r\n65534\r\n65534\r\n" + hidden + "\r\n"
		}
		if err != nil || exit.Code != 0 || out.String() != want {
			t.Errorf("terminal %v: %q, %+v, %v", tty, out.String(), exit, err)
		}
		st.Close()
	}
	list, err := s.Processes(patient(t))
	server := slices.IndexFunc(list, func(p guest.Process) bool { return p.Command == "httpd -f -p 127.0.0.1:8080 -h /www" })
	if err != nil || server < 0 || list[server].User != "root" || list[server].RSS == 0 {
		t.Errorf("%+v, %v", list, err)
	}
	powerOff(t, m, s)
}

// A clock that stood still with its machine is set right.
func TestTimeAfterPause(t *testing.T) {
	const pause = 2 * time.Second
	m, s, _ := machineOf(t, "sleep", "1000000")
	m.Monitor("stop", nil)
	<-time.After(pause)
	m.Monitor("cont", nil)
	ahead, err := s.SetTime(patient(t))
	if err != nil || ahead > -pause/2 {
		t.Errorf("after a pause of %s the clock was ahead by %s, %v", pause, ahead, err)
	}
	if ahead, err := s.SetTime(patient(t)); err != nil || ahead.Abs() > pause/2 {
		t.Errorf("a clock that was set is ahead by %s, %v", ahead, err)
	}
	powerOff(t, m, s)
}

// A volume is mounted, grown and taken away while its guest runs; so grows the writable disk.
func TestVolumesOfARunningGuest(t *testing.T) {
	m, s, spec := machineOf(t, "sleep", "1000000")
	mount := guest.Mount{Disk: guest.Disk{Device: guest.DevicePrefix + "volume1", FSType: "ext4"}, Path: "/mnt/more"}
	for range 2 { // the second finds it mounted
		if err := s.Mount(patient(t), mount); err != nil {
			t.Fatal(err)
		}
	}
	check(t, m, s, [][2]string{{"grep -c ' /mnt/more ext4 rw' /proc/mounts; echo kept >/mnt/more/file", "1\n"}})
	const grown = 160 << 20
	for path, c := range map[string]struct {
		node, file string
		bytes      int64
	}{"/mnt/more": {"volume1", spec.Volumes[1], grown}, "/": {"disk1", spec.Writable, 2 * diskBytes}} {
		before, err := s.Grow(patient(t), path)
		if err != nil || before >= c.bytes/2 {
			t.Errorf("%s, as large as its drive, has %d bytes, %v", path, before, err)
		}
		m.Monitor("block_resize", map[string]any{"node-name": c.node, "size": c.bytes})
		if after, err := s.Grow(patient(t), path); err != nil || after < c.bytes*8/10 {
			t.Errorf("%s has %d bytes of %d, %v", path, after, c.bytes, err)
		}
	}
	if _, err := s.Grow(patient(t), "/run"); !problem.HasCode(err, "guest.volume") {
		t.Errorf("grow of no volume: %v", err)
	}
	user, err := s.Exec(patient(t), guest.ExecRequest{Argv: []string{"sh", "-c", "cd /mnt/more; echo in; cat"}, Stdin: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := user.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := s.Unmount(patient(t), mount.Path); !problem.HasCode(err, "guest.volume_busy") {
		t.Errorf("a volume in use: %v", err)
	}
	if err := user.CloseStdin(); err != nil {
		t.Error(err)
	}
	if _, err := user.Wait(patient(t)); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := s.Unmount(patient(t), mount.Path); err != nil {
			t.Error(err)
		}
	}
	clean(t, spec.Volumes[1]) // while the guest runs
	missing := mount
	missing.Disk.Device = guest.DevicePrefix + "nobody"
	if err := s.Mount(patient(t), missing); !problem.HasCode(err, "guest.volume") {
		t.Errorf("a missing drive: %v", err)
	}
	if err := s.Mount(patient(t), mount); err != nil {
		t.Error(err)
	}
	check(t, m, s, [][2]string{{"cat /mnt/more/file", "kept\n"}})
	powerOff(t, m, s)
	for _, disk := range append(spec.Volumes, spec.Writable) {
		clean(t, disk)
	}
}

// xattr is an archive's record of an attribute.
const xattr = "SCHILY.xattr.user.note"

// tree makes an archive of a thousand files with all that a copy must keep, and describes it.
func tree(t *testing.T) (archive []byte, files map[string]string) {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	add := func(h tar.Header, body string) {
		h.Size, h.ModTime = int64(len(body)), time.Unix(1_700_000_000+int64(len(h.Name)), 0)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	add(tar.Header{Typeflag: tar.TypeDir, Name: "tree/", Mode: 0o2775, Uid: 1, Gid: 2}, "")
	for d := range 10 {
		dir := fmt.Sprintf("tree/d%d", d)
		add(tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o700 + int64(d)}, "")
		for f := range 97 {
			name := fmt.Sprintf("%s/f%03d", dir, f)
			add(tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600 + int64(f%64), Uid: f, Gid: d}, strings.Repeat(name, f))
		}
		add(tar.Header{Typeflag: tar.TypeLink, Name: dir + "/g", Linkname: dir + "/f042"}, "")
		add(tar.Header{Typeflag: tar.TypeSymlink, Name: dir + "/h", Linkname: "../../none", Mode: 0o777, Uid: 3}, "")
	}
	add(tar.Header{Typeflag: tar.TypeReg, Name: "tree/tail", Mode: 0o4711, PAXRecords: map[string]string{xattr: "kept"}}, "")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), describe(t, &buf)
}

// describe lists what an archive says of each file.
func describe(t *testing.T, r io.Reader) map[string]string {
	t.Helper()
	files := map[string]string{}
	archive := tar.NewReader(r)
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeLink { // whose file says the rest
			files[h.Name] = "link to " + h.Linkname
			continue
		}
		files[h.Name] = fmt.Sprintf("%c %o %d:%d %s %d %s %s%s", h.Typeflag, h.Mode, h.Uid, h.Gid, h.Linkname, h.Size, h.ModTime.UTC(), body, h.PAXRecords[xattr])
	}
}

// A thousand files go into a guest and come out as they were.
func TestCopyOfAThousandFiles(t *testing.T) {
	m, s, _ := machineOf(t, "sleep", "1000000")
	archive, files := tree(t)
	begin := time.Now()
	if err := s.CopyTo(patient(t), "/srv/data/in", bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files, %d bytes of archive: in after %s", len(files), len(archive), time.Since(begin).Round(time.Millisecond))
	check(t, m, s, [][2]string{
		{"find /srv/data/in/tree | wc -l", fmt.Sprintln(len(files))},
		{"cd /srv/data/in/tree; stat -c '%a %u:%g %h' d3/f042 d3/g . tail; readlink d9/h", "652 42:3 2\n652 42:3 2\n2775 1:2 12\n4711 0:0 1\n../../none\n"},
	})
	begin = time.Now()
	r, err := s.CopyFrom(patient(t), "/srv/data/in/tree")
	if err != nil {
		t.Fatal(err)
	}
	back, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	t.Logf("%d bytes of archive: out after %s", len(back), time.Since(begin).Round(time.Millisecond))
	if got := describe(t, bytes.NewReader(back)); !maps.Equal(got, files) {
		for name, want := range files {
			if got[name] != want {
				t.Errorf("%s: %.100q, want %.100q", name, got[name], want)
				break
			}
		}
		t.Errorf("%d files of %d", len(got), len(files))
	}
	if r, err := s.CopyFrom(patient(t), "/proc"); err != nil {
		t.Error(err)
	} else if got := describe(t, r); len(got) != 1 {
		t.Errorf("%d files of the kernel were copied", len(got))
	}
	powerOff(t, m, s)
}

// The configuration may hold megabytes of files.
func TestLargeConfiguration(t *testing.T) {
	b := boottest.Bundle(t)
	m := boottest.Boot(t, boottest.Spec{Kernel: boottest.Kernel(t, b, bundle.KernelOwn), MemoryMiB: 128, Image: image(t, b), Writable: writable(t)})
	s := m.Connect()
	cfg := config("sleep", "1000000")
	for i := range 64 {
		path := fmt.Sprintf("/srv/f%02d", i)
		cfg.Files = append(cfg.Files, guest.File{Path: path, Content: bytes.Repeat([]byte{byte(i)}, 16<<10)})
		cfg.Secrets = append(cfg.Secrets, guest.File{Path: guest.SecretsDir + path, Content: bytes.Repeat([]byte{byte(i)}, 64<<10)})
	}
	begin := time.Now()
	st := m.Ready(s, cfg)
	t.Logf("ready after %s, init took %d us", time.Since(begin), st.ReadyUS)
	check(t, m, s, [][2]string{
		{"cat /srv/f* | wc -c", "1048576\n"}, {"cat /run/secrets/srv/f* | wc -c", "4194304\n"},
	})
	powerOff(t, m, s)
}
