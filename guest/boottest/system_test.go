//go:build linux

package boottest_test

import (
	"bytes"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/boottest"
	"github.com/blixard/blixard/guest/bundle"
	"github.com/blixard/blixard/internal/problem"
)

// Under the image's own init all is there as well: what is mounted before init starts stays, and calls find
// init's view of files and processes.
func TestSystemdEquipment(t *testing.T) {
	b := boottest.Bundle(t)
	spec := boottest.Spec{
		Kernel: boottest.Kernel(t, b, bundle.KernelOwn), MemoryMiB: 512, Image: boottest.DebianRoot(t), Writable: writable(t),
		Volumes: []string{volume(t), volume(t)}, MAC: mac,
	}
	m := boottest.Boot(t, spec)
	s := m.Connect()
	cfg := equipped()
	cfg.Init = true
	cfg.UserData = "#cloud-config\n"
	m.Ready(s, cfg)
	m.AwaitConsole("the image has no cloud-init")
	if state, code := awaitSystemd(m, s); state != "running" && state != "degraded" {
		t.Fatalf("systemd is %q (exit code %d)", state, code)
	}
	check(t, m, s, [][2]string{
		{"cat /proc/1/comm; hostname; cat /etc/hostname", "systemd\ntest\ntest\n"},
		{"cat /etc/resolv.conf", "nameserver 10.0.2.3\nsearch vm.example\n"},
		{"getent ahostsv4 test | head -1 | cut -d' ' -f1", "10.0.2.15\n"},
		{"grep -c 0202000A /proc/net/fib_trie /proc/net/route", "/proc/net/fib_trie:0\n/proc/net/route:1\n"},
		{"grep -c 10.0.2.15 /proc/net/fib_trie", "2\n"},
		{"cat /sys/class/net/e*/mtu /sys/class/net/e*/operstate", "1400\nup\n"},
		{"stat -f -c %T /run /run/secrets /run/secrets/token /etc/app/key.pem", "tmpfs\ntmpfs\ntmpfs\ntmpfs\n"},
		{"cat /run/secrets/token; cat /etc/app/key.pem", hidden + hidden + "\n"},
		{"stat -c '%a %u %g' /run/secrets/token /etc/app/key.pem", "400 0 0\n440 65534 65534\n"},
		{"cat /etc/app/app.conf", "greeting = hello\n"},
		{"findmnt -no FSTYPE,OPTIONS /srv/data", "ext4   rw,relatime\n"},
		{"ls /var/lib/cloud 2>/dev/null; stat -c %a /root/.ssh/authorized_keys", "600\n"},
		{"systemctl is-active run-secrets.mount srv-data.mount", "active\nactive\n"},
	})
	list, err := s.Processes(patient(t))
	if i := slices.IndexFunc(list, func(p guest.Process) bool { return p.PID == 1 }); err != nil || i < 0 || !strings.Contains(list[i].Command, "init") {
		t.Errorf("%+v, %v", list, err)
	}
	mount := guest.Mount{Disk: guest.Disk{Device: guest.DevicePrefix + "volume1", FSType: "ext4"}, Path: "/mnt/more"}
	if err := s.Mount(patient(t), mount); err != nil {
		t.Fatal(err)
	}
	archive, files := tree(t)
	if err := s.CopyTo(patient(t), mount.Path, bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	check(t, m, s, [][2]string{{"find /mnt/more/tree | wc -l", fmt.Sprintln(len(files))}})
	if r, err := s.CopyFrom(patient(t), mount.Path+"/tree"); err != nil {
		t.Error(err)
	} else {
		if got := describe(t, r); len(got) != len(files) {
			t.Errorf("%d files of %d", len(got), len(files))
		}
		_ = r.Close()
	}
	const grown = 160 << 20
	m.Monitor("block_resize", map[string]any{"node-name": "volume1", "size": grown})
	if size, err := s.Grow(patient(t), mount.Path); err != nil || size < grown*8/10 {
		t.Errorf("%d bytes, %v", size, err)
	}
	if err := s.Unmount(patient(t), "/srv/data"); err != nil {
		t.Error(err)
	}
	clean(t, spec.Volumes[0])
	if _, err := s.Dial(patient(t), 81); !problem.HasCode(err, guest.CodeRefused) {
		t.Errorf("nobody's port: %v", err)
	}
	st, err := s.Exec(patient(t), guest.ExecRequest{Argv: []string{"sh", "-c", "id -un; stat -c %U $(tty)"}, User: "nobody", TTY: true})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := st.Copy(&out, io.Discard); err != nil || out.String() != "nobody\r\nnobody\r\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	st.Close()
	if exit := powerOff(t, m, s); exit.Code != 0 {
		t.Errorf("%+v", exit)
	}
	for _, disk := range append(spec.Volumes, spec.Writable) {
		clean(t, disk)
		holds(t, disk, hidden, false)
	}
	if out, err := exec.Command("debugfs", "-R", "ls /tree", spec.Volumes[1]).Output(); err != nil || !bytes.Contains(out, []byte("tail")) {
		t.Errorf("the volume has %q, %v", out, err)
	}
}
