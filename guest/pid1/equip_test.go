//go:build linux

package pid1

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/wire"
)

func TestParseInterface(t *testing.T) {
	n, err := parseInterface(&wire.Interface{
		MAC: "52:54:00:AB:cd:ef", MTU: 1400, Addresses: []string{"10.64.0.5/16", "fd00::5/64"}, GatewayIPv4: "10.64.0.1", GatewayIPv6: "fe80::1",
	})
	if err != nil || n.mac != [6]byte{0x52, 0x54, 0, 0xab, 0xcd, 0xef} || n.mtu != 1400 || fmt.Sprint(n.prefixes, n.gateways) != "[10.64.0.5/16 fd00::5/64] [10.64.0.1 fe80::1]" {
		t.Errorf("%+v, %v", n, err)
	}
	for name, i := range map[string]wire.Interface{
		"no mac":        {},
		"short mac":     {MAC: "52:54:00:ab:cd"},
		"dashes":        {MAC: "52-54-00-ab-cd-ef"},
		"colons astray": {MAC: "5254:00:ab:cd:ef:"},
		"no length":     {MAC: "52:54:00:ab:cd:ef", Addresses: []string{"10.0.0.1"}},
		"mapped":        {MAC: "52:54:00:ab:cd:ef", Addresses: []string{"::ffff:10.0.0.1/120"}},
		"zone":          {MAC: "52:54:00:ab:cd:ef", GatewayIPv6: "fe80::1%eth0"},
		"families":      {MAC: "52:54:00:ab:cd:ef", GatewayIPv4: "fe80::1"},
		"mapped 6":      {MAC: "52:54:00:ab:cd:ef", GatewayIPv6: "::ffff:10.0.0.1"},
	} {
		if n, err := parseInterface(&i); err == nil {
			t.Errorf("%s: %+v", name, n)
		}
	}
}

func FuzzParseInterface(f *testing.F) {
	f.Add("52:54:00:12:34:56", "10.0.0.1/8", "fe80::1")
	f.Fuzz(func(t *testing.T, mac, address, gateway string) {
		n, err := parseInterface(&wire.Interface{MAC: mac, Addresses: []string{address}, GatewayIPv4: gateway, GatewayIPv6: gateway})
		if err == nil && (len(n.prefixes) != 1 || gateway != "") {
			t.Errorf("%+v", n)
		}
	})
}

// The loopback link of this machine is found and described as any NIC.
func TestNetlink(t *testing.T) {
	nl, err := openNetlink()
	if err != nil {
		t.Fatal(err)
	}
	defer nl.close()
	// Loopback's hardware address is zeros.
	if l, err := nl.nicByMAC([6]byte{}); l != (nic{index: 1, name: "lo"}) || err != nil {
		t.Errorf("loopback is link %+v, %v", l, err)
	}
	if l, err := nl.nicByMAC([6]byte{2, 9, 9, 9, 9, 9}); l.index != 0 || err != nil {
		t.Errorf("no link is link %+v, %v", l, err)
	}
	const nobody = 1 << 30
	if err := nl.linkUp(nobody, 0); !errors.Is(err, unix.ENODEV) {
		t.Errorf("up: %v", err)
	}
	if err := nl.addAddress(nobody, netip.MustParsePrefix("10.9.9.9/24")); !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EPERM) {
		t.Errorf("address: %v", err)
	}
	if err := nl.addDefaultRoute(nobody, netip.MustParseAddr("10.9.9.1"), 5000); err == nil {
		t.Error("route: no error")
	}
}

func TestWalkMessages(t *testing.T) {
	message := func(typ uint16, body ...byte) []byte {
		r := newRequest(typ, 0, body)
		native.PutUint32(r.b, uint32(len(r.b)))
		return append(r.b, make([]byte, align(len(r.b))-len(r.b))...)
	}
	refusal := native.AppendUint32(nil, ^uint32(unix.EPERM)+1)
	for name, c := range map[string]struct {
		b    []byte
		done bool
		err  error
		seen int
	}{
		"nothing":      {nil, false, nil, 0},
		"more to come": {append(message(16, 1, 2, 3), message(16)...), false, nil, 2},
		"done":         {append(message(16), message(unix.NLMSG_DONE, 0, 0, 0, 0)...), true, nil, 1},
		"accepted":     {message(unix.NLMSG_ERROR, 0, 0, 0, 0), true, nil, 0},
		"refused":      {message(unix.NLMSG_ERROR, refusal...), true, unix.EPERM, 0},
		"short error":  {message(unix.NLMSG_ERROR, 1), true, unix.EBADMSG, 0},
		"too long":     {message(16)[:16:16], false, nil, 1},
		"size of 3":    {append([]byte{3, 0, 0, 0}, make([]byte, 12)...), true, unix.EBADMSG, 0},
		"size beyond":  {append([]byte{200, 0, 0, 0}, make([]byte, 12)...), true, unix.EBADMSG, 0},
	} {
		seen := 0
		done, err := walkMessages(c.b, func(uint16, []byte) { seen++ })
		if done != c.done || !errors.Is(err, c.err) || seen != c.seen {
			t.Errorf("%s: %v, %v, %d messages", name, done, err, seen)
		}
	}
}

func FuzzNetlink(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 1, 0, 1, 2, 3, 4})
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = walkMessages(b, func(_ uint16, body []byte) {
			walkAttributes(body, func(uint16, []byte) {})
		})
	})
}

func TestHostsFile(t *testing.T) {
	two := &wire.BootConfig{Hostname: "vm", Interfaces: []wire.Interface{
		{Addresses: []string{"10.0.0.5/8"}}, {Addresses: []string{"fd00::5/64", "10.9.0.5/16"}},
	}}
	local := "127.0.0.1 localhost # blixard\n::1 localhost ip6-localhost ip6-loopback # blixard\n"
	for name, c := range map[string]struct {
		old  string
		cfg  *wire.BootConfig
		want string
	}{
		"none":            {"", two, local + "10.0.0.5 vm # blixard\nfd00::5 vm # blixard\n"},
		"of an image":     {"127.0.0.1\tlocalhost\n1.2.3.4 other", two, "127.0.0.1\tlocalhost\n1.2.3.4 other\n10.0.0.5 vm # blixard\nfd00::5 vm # blixard\n"},
		"of an old boot":  {local + "10.0.0.4 old # blixard\n1.2.3.4 own\n", two, "1.2.3.4 own\n" + local + "10.0.0.5 vm # blixard\nfd00::5 vm # blixard\n"},
		"no address":      {"127.0.0.1 localhost\n", &wire.BootConfig{Hostname: "vm"}, "127.0.0.1 localhost\n127.0.1.1 vm # blixard\n"},
		"no name":         {"", &wire.BootConfig{}, local},
		"only in comment": {"# localhost\n", &wire.BootConfig{}, "# localhost\n" + local},
	} {
		got := hostsFile(c.old, c.cfg)
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		if again := hostsFile(got, c.cfg); again != got && name != "of an old boot" {
			t.Errorf("%s: again %q", name, again)
		}
	}
}

func TestWriteNames(t *testing.T) {
	root := t.TempDir()
	cfg := &wire.BootConfig{Hostname: "vm", DNS: []string{"1.1.1.1", "fd00::1"}, Search: []string{"a.example", "b.example"}}
	write(t, root+"/etc/hosts", "127.0.0.1 localhost\n", 0o640)
	if err := os.Symlink("../run/systemd/resolve/stub-resolv.conf", root+"/etc/resolv.conf"); err != nil {
		t.Fatal(err)
	}
	if err := writeNames(root, cfg); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"resolv.conf": "nameserver 1.1.1.1\nnameserver fd00::1\nsearch a.example b.example\n", "hostname": "vm\n",
		"hosts": "127.0.0.1 localhost\n127.0.1.1 vm # blixard\n",
	} {
		path := root + "/etc/" + name
		b, err := os.ReadFile(path)
		info, statErr := os.Lstat(path)
		if err != nil || string(b) != want || statErr != nil || info.Mode() != 0o644 {
			t.Errorf("%s: %q, %v, %v", name, b, info.Mode(), err)
		}
	}
	// What is right already is not written again.
	before, err := os.Stat(root + "/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	if err := writeNames(root, cfg); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(root + "/etc/hosts"); err != nil || !os.SameFile(before, after) {
		t.Errorf("written again: %v", err)
	}
	// Nothing asked for is nothing done; a list of somebody's own making stays.
	bare := t.TempDir()
	if err := writeNames(bare, &wire.BootConfig{}); err != nil || exists(bare+"/etc") {
		t.Errorf("%v", err)
	}
	long := strings.Repeat("1.2.3.4 blocked.example\n", 1000)
	write(t, bare+"/etc/hosts", long, 0o644)
	if err := writeNames(bare, &wire.BootConfig{Hostname: "vm"}); err != nil || len(readSmall(bare+"/etc/hosts")) != smallFile {
		t.Errorf("%v", err)
	}
	write(t, bare+"/file", "", 0o644)
	if err := writeNames(bare+"/file", cfg); !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("below a file: %v", err)
	}
}

func TestWriteFile(t *testing.T) {
	root := t.TempDir()
	outside := root + "/outside"
	write(t, outside, "kept", 0o644)
	for name, prepare := range map[string]func(string) error{
		"new":     func(string) error { return nil },
		"over":    func(path string) error { return os.WriteFile(path, []byte("old and longer"), 0o400) },
		"link":    func(path string) error { return os.Symlink(outside, path) },
		"dangles": func(path string) error { return os.Symlink("/none", path) },
	} {
		path := root + "/d/e/" + name
		if err := makeDir(root + "/d/e"); err != nil {
			t.Fatal(err)
		}
		if err := prepare(path); err != nil {
			t.Fatal(err)
		}
		f := &wire.File{Path: path, Mode: 0o4750, UID: uint32(os.Getuid()), GID: uint32(os.Getgid()), Content: []byte("new")}
		if err := writeFile(f); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || st.Mode != unix.S_IFREG|0o4750 || readSmall(path) != "new" {
			t.Errorf("%s: mode %o, %q, %v", name, st.Mode, readSmall(path), err)
		}
	}
	if readSmall(outside) != "kept" {
		t.Error("written through a link")
	}
	for _, path := range []string{root + "/d", outside + "/x"} {
		if err := writeFile(&wire.File{Path: path}); err == nil || !strings.Contains(err.Error(), path) && !strings.Contains(err.Error(), outside) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestCheckPath(t *testing.T) {
	for _, path := range []string{"/a", "/a/b.c/..d", "/" + strings.Repeat("x", 255)} {
		if err := checkPath(path); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
	for _, path := range []string{"", "/", "a", "a/b", "//a", "/a/", "/a//b", "/./a", "/a/..", "/a\x00b", "/" + strings.Repeat("x/", wire.MaxPath)} {
		if err := checkPath(path); err == nil {
			t.Errorf("%.20q: no error", path)
		}
	}
}

func TestKeys(t *testing.T) {
	root := t.TempDir()
	write(t, root+"/etc/passwd", "root:x:0:0:root:/home/admin:/bin/sh\n", 0o644)
	write(t, root+"/home/admin/.ssh/authorized_keys", "ssh-rsa A one", 0o666)
	for range 2 {
		if err := addKeys(root, []string{"ssh-rsa A one", " ssh-rsa B two "}); err != nil {
			t.Fatal(err)
		}
	}
	path := root + "/home/admin/.ssh/authorized_keys"
	info, err := os.Stat(path)
	dir, dirErr := os.Stat(root + "/home/admin/.ssh")
	if got := readSmall(path); got != "ssh-rsa A one\nssh-rsa B two\n" || err != nil || info.Mode() != 0o600 || dirErr != nil || dir.Mode().Perm() != 0o700 {
		t.Errorf("%q, %v, %v", got, err, dirErr)
	}
	bare := t.TempDir() // an image without accounts
	if err := addKeys(bare, []string{"k"}); err != nil || readSmall(bare+"/root/.ssh/authorized_keys") != "k\n" {
		t.Errorf("%v", err)
	}
	if err := addKeys(bare, nil); err != nil {
		t.Error(err)
	}
	write(t, bare+"/etc/passwd", "root:x:0:0:root:/etc/passwd:/bin/sh\n", 0o644)
	if err := addKeys(bare, []string{"k"}); err == nil {
		t.Error("a home that is a file: no error")
	}
}

func TestCloudInit(t *testing.T) {
	cfg := &wire.BootConfig{Hostname: "vm", UserData: "#cloud-config\n"}
	root := t.TempDir()
	if has, err := seedCloudInit(root, cfg); has || err != nil || len(listSmall(root)) != 0 {
		t.Errorf("an image without cloud-init: %v, %v", has, err)
	}
	write(t, root+"/etc/cloud/cloud.cfg", "", 0o644)
	if has, err := seedCloudInit(root, &wire.BootConfig{}); !has || err != nil || exists(root+"/var") {
		t.Errorf("no data: %v, %v", has, err)
	}
	if has, err := seedCloudInit(root, cfg); !has || err != nil {
		t.Errorf("%v, %v", has, err)
	}
	if got := readSmall(root + seedDir + "/user-data"); got != cfg.UserData {
		t.Errorf("%q", got)
	}
	if got := readSmall(root + seedDir + "/network-config"); got != seedNetwork {
		t.Errorf("network %q", got)
	}
	if got := readSmall(root + seedDir + "/meta-data"); got != "instance-id: iid-vm\nlocal-hostname: vm\n" {
		t.Errorf("%q", got)
	}
	cfg.MetaData = "instance-id: own\n"
	if _, err := seedCloudInit(root, cfg); err != nil || readSmall(root+seedDir+"/meta-data") != cfg.MetaData {
		t.Errorf("%v", err)
	}
}

func TestTop(t *testing.T) {
	proc, root := t.TempDir(), t.TempDir()
	stat := func(pid int, name, rest string) {
		write(t, fmt.Sprintf("%s/%d/stat", proc, pid), fmt.Sprintf("%d (%s) %s", pid, name, rest), 0o644)
	}
	// After the name: state, parent, eight numbers, then user and system time (12, 13) and at 22 the pages.
	line := func(state string, ppid, user, system, pages int) string {
		return fmt.Sprintf("%s %d 3 4 5 6 7 8 9 10 11 %d %d 0 0 0 0 0 0 0 0 %d 0\n", state, ppid, user, system, pages)
	}
	stat(1, "init", line("S", 0, 1, 2, 3))
	stat(2, "kthreadd", line("S", 0, 900, 900, 0))
	stat(3, "kworker/0:0", line("I", 2, 900, 900, 0))
	stat(40, "odd) (name", line("R", 1, 50, 7, 10))
	stat(41, "busy", line("R", 40, 60, 0, 1))
	stat(42, "zombie", line("Z", 40, 99, 0, 0))
	stat(43, "cut", "S 1 2 3\n")
	write(t, proc+"/44/stat", "nonsense", 0o644)
	write(t, proc+"/45/comm", "no stat", 0o644)
	write(t, proc+"/41/cmdline", "busy\x00-n\x00\x1b[2J\x00", 0o644)
	me := strconv.Itoa(os.Getuid())
	write(t, root+"/etc/passwd", "tester:x:"+me+":0::/:/bin/sh\n", 0o644)
	page := uint64(os.Getpagesize())
	want := []wire.Process{
		{PID: 41, User: "tester", CPUMS: 600, RSS: page, Command: "busy -n ?[2J"},
		{PID: 40, User: "tester", CPUMS: 570, RSS: 10 * page, Command: "[odd) (name]"},
		{PID: 1, User: "tester", CPUMS: 30, RSS: 3 * page, Command: "[init]"},
	}
	if got := topProcesses(proc, root); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%+v\nwant %+v", got, want)
	}
	if got := topProcesses(proc, t.TempDir()); len(got) != 3 || got[0].User != me && me != "0" {
		t.Errorf("%+v", got)
	}
	if got := topProcesses(proc+"/none", root); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	for i := range 3 * wire.TopProcesses {
		stat(100+i, "more", line("S", 1, 10_000-i, 0, 1))
	}
	if got := topProcesses(proc, root); len(got) != wire.TopProcesses || got[0].PID != 100 {
		t.Errorf("%d processes", len(got))
	}
}

func FuzzProcess(f *testing.F) {
	f.Add("41 (busy) R 40 3 4 5 6 7 8 9 10 11 60 0 0 0 0 0 0 0 0 0 1 0\n", "busy\x00-n")
	f.Fuzz(func(t *testing.T, stat, cmdline string) {
		dir := t.TempDir()
		write(t, dir+"/41/stat", stat, 0o644)
		write(t, dir+"/41/cmdline", cmdline, 0o644)
		for _, p := range topProcesses(dir, dir) {
			if p.PID != 41 || p.Command == "" || len(p.Command) > wire.MaxCommand {
				t.Errorf("%+v", p)
			}
		}
	})
}

func FuzzReadStatus(f *testing.F) {
	f.Add("HTTP/1.1 103 Hints\r\n\r\nHTTP/1.1 200 OK\r\n")
	f.Fuzz(func(t *testing.T, answer string) {
		status, err := readStatus(bufio.NewReader(strings.NewReader(answer)))
		if err == nil && (status < 101 || status > 999 || !strings.HasPrefix(answer, "HTTP/1.")) {
			t.Errorf("%q has the status %d", answer, status)
		}
	})
}

// FuzzUnpack unpacks hostile archives: nothing is made outside of their directory.
func FuzzUnpack(f *testing.F) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []tar.Header{
		{Typeflag: tar.TypeDir, Name: "d/", Mode: 0o755},
		{Typeflag: tar.TypeSymlink, Name: "d/l", Linkname: "../.."},
		{Typeflag: tar.TypeReg, Name: "d/l/x", Mode: 0o644, Size: 1},
		{Typeflag: tar.TypeLink, Name: "h", Linkname: "d/l/x"},
	} {
		if err := w.WriteHeader(&h); err != nil {
			f.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, "x"); err != nil {
				f.Fatal(err)
			}
		}
	}
	f.Add(buf.Bytes())
	f.Fuzz(func(t *testing.T, archive []byte) {
		around := t.TempDir()
		_ = unpack(around+"/in/to", bytes.NewReader(archive))
		for _, name := range append(listSmall(around), listSmall(around+"/in")...) {
			if name != "in" && name != "to" {
				t.Errorf("%q was made outside", name)
			}
		}
	})
}
