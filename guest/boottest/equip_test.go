//go:build linux

package boottest_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/guest/boottest"
	"github.com/blixard/blixard/guest/bundle"
)

const (
	mac = "52:54:00:12:34:56"
	// hidden is what no disk may ever hold.
	hidden = "correct-horse-battery-staple"
)

// equipped is a configuration with one of everything.
func equipped(argv ...string) guest.BootConfig {
	cfg := config(argv...)
	cfg.Interfaces = []guest.Interface{{
		MAC: mac, MTU: 1400, Addresses: []string{boottest.UserAddress, "fec0::15/64"}, GatewayIPv4: boottest.UserGateway, GatewayIPv6: "fe80::2",
	}}
	cfg.DNS, cfg.Search = []string{boottest.UserDNS}, []string{"vm.example"}
	cfg.Mounts = []guest.Mount{{Disk: guest.Disk{Device: guest.DevicePrefix + "volume0", FSType: "ext4"}, Path: "/srv/data"}}
	cfg.Files = []guest.File{
		{Path: "/etc/app/app.conf", Content: []byte("greeting = hello\n")},
		{Path: "/srv/data/from-config", Mode: 0o4711, UID: 65534, GID: 5, Content: []byte("x")},
	}
	cfg.Secrets = []guest.File{
		{Path: guest.SecretsDir + "/token", Content: []byte(hidden)},
		{Path: "/etc/app/key.pem", Mode: 0o440, UID: 65534, GID: 65534, Content: []byte(hidden + "\n")},
	}
	cfg.SSHKeys = []string{"ssh-ed25519 AAAA one", "ssh-ed25519 BBBB two"}
	return cfg
}

func volume(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "volume")
	boottest.Sparse(t, path, 64<<20)
	return path
}

// check runs shell commands in a guest and compares what they write.
func check(t *testing.T, m *boottest.Machine, s *guest.Session, wants [][2]string) {
	t.Helper()
	for _, w := range wants {
		if out, code := m.Exec(s, "sh", "-c", w[0]); out != w[1] {
			t.Errorf("%s: %q (exit code %d), want %q", w[0], out, code, w[1])
		}
	}
}

// A guest has its network, volume, files, secrets and keys before its command starts, and again after the
// next boot. No disk holds a secret then.
func TestEquipment(t *testing.T) {
	b := boottest.Bundle(t)
	for _, name := range []string{bundle.KernelOwn, bundle.KernelDebian} {
		t.Run(name, func(t *testing.T) {
			disk, vol := writable(t), volume(t)
			spec := boottest.Spec{
				Kernel: boottest.Kernel(t, b, name), MemoryMiB: 256, Image: image(t, b), Writable: disk, Volumes: []string{vol}, MAC: mac,
			}
			greeting := greeter(t)
			for boot := range 2 {
				m := boottest.Boot(t, spec)
				s := m.Connect()
				cfg := equipped("sh", "-c", "cat /etc/app/app.conf /run/secrets/token >/dev/shm/part; mv /dev/shm/part /dev/shm/seen; exec sleep 1000000")
				st := m.Ready(s, cfg)
				t.Logf("boot %d: init took %d us", boot, st.ReadyUS)
				check(t, m, s, [][2]string{
					{"until cat /dev/shm/seen 2>/dev/null; do sleep 0.1; done", "greeting = hello\n" + hidden},
					{"hostname; cat /etc/hostname", "test\ntest\n"},
					{"cat /etc/resolv.conf", "nameserver 10.0.2.3\nsearch vm.example\n"},
					{"grep -c '^10.0.2.15 test' /etc/hosts; grep -c localhost /etc/hosts", "1\n2\n"},
					{"ip -4 -o addr show dev eth0 | grep -o 'inet [^ ]* brd [^ ]*'", "inet 10.0.2.15/24 brd 10.0.2.255\n"},
					{"ip -6 -o addr show dev eth0 scope site | grep -c tentative", "0\n"},
					{"ip -6 -o addr show dev eth0 scope site | grep -o 'inet6 fec0::15/64'", "inet6 fec0::15/64\n"},
					{"ip route show default | grep -o 'default via [^ ]* dev eth0'", "default via 10.0.2.2 dev eth0\n"},
					{"ip -6 route show default | grep -o 'default via [^ ]* dev eth0'", "default via fe80::2 dev eth0\n"},
					{"cat /sys/class/net/eth0/mtu", "1400\n"},
					{"wget -q -O - http://" + boottest.UserGateway + ":" + greeting + "/", "hello from the host"},
					{"stat -c '%a %u %g %s' /etc/app/app.conf /srv/data/from-config", "644 0 0 17\n4711 65534 5 1\n"},
					{"stat -c '%a %u %g %s' /run/secrets/token /etc/app/key.pem", "400 0 0 28\n440 65534 65534 29\n"},
					{"stat -f -c %T /run/secrets /run/secrets/token /etc/app/key.pem", "tmpfs\ntmpfs\ntmpfs\n"},
					{"ls -A /run/secrets", "token\n"},
					{"cat /etc/app/key.pem", hidden + "\n"},
					{"echo x 2>/dev/null >/run/secrets/token || echo refused", "refused\n"},
					{"echo x 2>/dev/null >/etc/app/key.pem || echo refused", "refused\n"},
					{"stat -c '%a %u' /root/.ssh /root/.ssh/authorized_keys", "700 0\n600 0\n"},
					{"cat /root/.ssh/authorized_keys", "ssh-ed25519 AAAA one\nssh-ed25519 BBBB two\n"},
					{"ls /srv/data/kept 2>/dev/null | wc -l", strconv.Itoa(boot) + "\n"},
					{"grep -c ' /srv/data ext4 rw' /proc/mounts", "1\n"},
					{"touch /srv/data/kept", ""},
				})
				if err := s.Stop(t.Context(), time.Minute); err != nil {
					t.Fatal(err)
				}
				m.AwaitEvent(s, guest.EventExited)
				m.PowerOff(s)
				for _, path := range []string{disk, vol} {
					holds(t, path, hidden, false)
				}
				holds(t, disk, "greeting = hello", true)
				clean(t, disk)
				clean(t, vol)
				if strings.Contains(m.Console(), hidden) {
					t.Error("the console shows a secret")
				}
			}
		})
	}
}

// holds looks through a whole disk for some bytes.
func holds(t *testing.T, disk, what string, want bool) {
	t.Helper()
	raw, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	if got := bytes.Contains(raw, []byte(what)); got != want {
		t.Errorf("%s holds %q: %v", disk, what, got)
	}
}

// greeter is a server of the host that says hello to each HTTP request; it gives its port.
func greeter(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(boottest.Patience))
			_, _ = c.Read(make([]byte, 4096))
			_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\nhello from the host")
			_ = c.Close()
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// An image may be an erofs, compressed or not, with each kernel.
func TestErofs(t *testing.T) {
	b := boottest.Bundle(t)
	content := t.TempDir()
	if out, err := exec.Command("debugfs", "-R", "rdump / "+content, image(t, b)).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
	for _, name := range []string{bundle.KernelOwn, bundle.KernelDebian} {
		for compression, options := range map[string][]string{"plain": nil, "lz4": {"-zlz4hc"}} {
			t.Run(name+"/"+compression, func(t *testing.T) {
				path := filepath.Join(t.TempDir(), "image")
				if out, err := exec.Command("mkfs.erofs", append(options, path, content)...).CombinedOutput(); err != nil {
					t.Fatalf("mkfs.erofs: %v\n%s", err, out)
				}
				m := boottest.Boot(t, boottest.Spec{Kernel: boottest.Kernel(t, b, name), MemoryMiB: 256, Image: path, Writable: writable(t)})
				s := m.Connect()
				cfg := config("sleep", "1000000")
				cfg.Image.FSType, cfg.User = "erofs", "nobody" // which is the default of what is run beside, too
				m.Ready(s, cfg)
				check(t, m, s, [][2]string{{"id -u; echo more >/tmp/x; cat /tmp/x; ls -l /bin/sh | grep -o '/bin/sh.*'", "65534\nmore\n/bin/sh -> /bin/busybox\n"}})
				powerOff(t, m, s)
			})
		}
	}
}
