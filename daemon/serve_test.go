package daemon_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// serveLimit bounds the wait until the servers of a VM answer.
const serveLimit = 3 * time.Minute

// Ports that the Debian's VM is published by.
const (
	pagePort     = 8080
	databasePort = 5432
)

// userData is for cloud-init.
const userData = `#cloud-config
locale: C.UTF-8
ssh_genkeytypes: []
write_files:
- path: /etc/seeded
  content: "written\n"
runcmd:
- echo "ran as $(hostname)" >/run/ran
`

// site is a cluster on hosts with a registry on the first one's loopback.
type site struct {
	*cluster
	hosts *hosts
	image string
}

// page wants the Debian's page through a port of a host, asked for by another.
func (s *site) page(from, to, port int) {
	s.t.Helper()
	var got string
	var err error
	eventually(s.t, fmt.Sprintf("host %d answers host %d on port %d", to+1, from+1, port), serveLimit, func() bool {
		got, err = s.hosts.get(from, fmt.Sprintf("http://%s:%d/", address(to), port))
		return err == nil
	})
	if got != debianPage {
		s.t.Fatalf("host %d answers host %d %q, %v", to+1, from+1, got, err)
	}
}

// sql asks the database through a port of a host, as another, until it answers.
func (s *site) sql(from, to int, text string) []string {
	s.t.Helper()
	var rows []string
	var err error
	eventually(s.t, fmt.Sprintf("the database answers on host %d", to+1), serveLimit, func() bool {
		rows, err = s.query(from, fmt.Sprintf("%s:%d", address(to), databasePort), text)
		return err == nil
	})
	if err != nil {
		s.t.Fatalf("%s: %v", text, err)
	}
	return rows
}

// query speaks PostgreSQL's protocol 3.0 as far as one simple query needs it, and
// gives the first column.
func (s *site) query(from int, addr, text string) (rows []string, err error) {
	conn, err := s.hosts.dial(s.t.Context(), from, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return nil, err
	}
	message := func(kind string, body []byte) error {
		_, err := conn.Write(slices.Concat([]byte(kind), binary.BigEndian.AppendUint32(nil, uint32(4+len(body))), body))
		return err
	}
	hello := append(binary.BigEndian.AppendUint32(nil, 3<<16), "user\x00postgres\x00database\x00postgres\x00\x00"...)
	if err := message("", hello); err != nil {
		return nil, err
	}
	for asked := false; ; {
		var head [5]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return nil, err
		}
		body := make([]byte, binary.BigEndian.Uint32(head[1:])-4)
		if _, err := io.ReadFull(conn, body); err != nil {
			return nil, err
		}
		switch head[0] {
		case 'E':
			return nil, errors.New(string(body))
		case 'D':
			rows = append(rows, string(body[6:6+binary.BigEndian.Uint32(body[2:])]))
		case 'Z':
			if asked {
				return rows, nil
			}
			asked = true
			if err := message("Q", append([]byte(text), 0)); err != nil {
				return nil, err
			}
		}
	}
}

// keeps adds a row to those that must be there.
func (s *site) keeps(from, to int, rows ...string) []string {
	s.t.Helper()
	if got := s.sql(from, to, "SELECT what FROM kept ORDER BY number"); !slices.Equal(got, rows) {
		s.t.Fatalf("the database has %q, not %q", got, rows)
	}
	row := fmt.Sprint("row ", len(rows)+1)
	s.sql(from, to, fmt.Sprintf("INSERT INTO kept VALUES (%d, '%s')", len(rows)+1, row))
	return append(rows, row)
}

// byName wants the Debian's page by a VM's name, from another VM.
func (s *site) byName(n *node, client, name string) {
	s.t.Helper()
	var out string
	var err error
	eventually(s.t, name+" answers by its name", serveLimit, func() bool {
		out, err = n.exec(client, "timeout", "5", "wget", "-q", "-O", "-", "http://"+name+"/")
		return err == nil
	})
	if out != debianPage {
		s.t.Fatalf("%s says %q, %v", name, out, err)
	}
}

// volumeClean wants the file system of a volume to need no repair.
func (s *site) volumeClean(n *node, name string) {
	s.t.Helper()
	resp, err := n.client.Volumes().GetVolume(s.t.Context(), &blixardv1.GetVolumeRequest{Name: name})
	if err != nil {
		s.t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(n.data, "volumes", resp.GetVolume().GetId(), "*"))
	if err != nil {
		s.t.Fatal(err)
	}
	checked := false
	for _, file := range files {
		if out, err := exec.Command("dumpe2fs", "-h", file).Output(); err == nil {
			checked = true
			if !bytes.Contains(out, []byte("state:         clean")) || bytes.Contains(out, []byte("needs_recovery")) {
				s.t.Errorf("the volume was not unmounted:\n%s", out)
			}
			if out, err := exec.Command("e2fsck", "-fn", file).CombinedOutput(); err != nil {
				s.t.Errorf("e2fsck: %v\n%s", err, out)
			}
		}
	}
	if !checked {
		s.t.Fatalf("no file system in %v", files)
	}
}

// TestDebianServesFromItsVolume: a Debian with a web server and a database, from a
// registry, serves through every node, keeps its database on a volume whatever
// happens to VM, daemon and host, and is reached by name from a VM on another node.
func TestDebianServesFromItsVolume(t *testing.T) {
	debianLayer(t) // whose making does not count
	c, h := startSite(t, 3)
	s := &site{cluster: c, hosts: h, image: startRegistry(t, h, 0) + "/debian:test"}
	pushDebian(t, h, 0, s.image)
	first, second := c.nodes[0], c.nodes[1]

	first.blixard("volume", "create", "data", "--size", "1GiB", "--node", "n1")
	first.blixard("volume", "create", "other", "--size", "64MiB", "--node", "n2")
	// The command is given to a node that has neither image nor volume.
	out := c.nodes[2].blixard("run", "-d", "--name", "web", "--restart", "always", "-m", "512MiB",
		"-p", fmt.Sprintf("%d:80", pagePort), "-p", fmt.Sprintf("%d:5432", databasePort), "-v", "data:/var/lib/postgresql", s.image)
	if out != "web\n" {
		t.Errorf("run says %q", out)
	}
	second.blixard("run", "-d", "--name", "client", "--restart", "always", "-m", "128MiB", "-v", "other:/mnt", "busybox", "--", "sleep", "1000000")
	if a, b := first.get("web").GetStatus().GetNode(), first.get("client").GetStatus().GetNode(); a != "n1" || b != "n2" {
		t.Fatalf("the VMs are on %s and %s", a, b)
	}
	for to := range 3 {
		s.page(1, to, pagePort)
	}
	s.sql(1, 2, "CREATE TABLE kept (number int PRIMARY KEY, what text)")
	rows := s.keeps(1, 2)
	s.byName(second, "client", "web")

	t.Log("stop and start")
	second.blixard("vm", "stop", "web", "--grace", "60s")
	if code := first.get("web").GetStatus().GetExitCode(); code != 0 {
		t.Errorf("the database ended with %d", code)
	}
	s.volumeClean(first, "data")
	second.blixard("vm", "start", "web")
	rows = s.keeps(2, 0, rows...)

	t.Log("a daemon that dies")
	boot := first.get("web").GetStatus().GetBootId()
	first.kill9()
	s.page(1, 0, pagePort)
	rows = s.keeps(1, 0, rows...)
	first.start()
	if got := first.awaitRunning("web").GetStatus().GetBootId(); got != boot {
		t.Errorf("the VM was boot %s, is %s", boot, got)
	}
	s.page(2, 1, pagePort)
	rows = s.keeps(1, 1, rows...)

	t.Log("loss of power")
	s.powerLoss()
	again := first.await("web", "it runs again by itself", func(vm *blixardv1.VM) bool { return running(vm) && vm.GetStatus().GetBootId() != boot })
	s.page(1, 2, pagePort)
	rows = s.keeps(2, 1, rows...)
	s.byName(second, "client", "web")
	t.Logf("%d rows, after %d boots", len(rows), again.GetStatus().GetRestarts()+1)

	s.bootsAsASystem()
}

// powerLoss ends everything of all hosts at once, and starts their daemons anew.
func (s *site) powerLoss() {
	s.t.Helper()
	for k, n := range s.nodes {
		n.powerLoss()
		s.hosts.wipe(k)
	}
	for _, n := range s.nodes {
		n.launch()
	}
	for _, n := range s.nodes {
		if !n.answers() {
			s.t.Fatalf("the daemon ended:\n%s", n.log())
		}
	}
}

// bootsAsASystem: the same image boots as a whole when its command is an init.
func (s *site) bootsAsASystem() {
	t, n := s.t, s.nodes[0]
	t.Log("a whole system")
	n.blixard("vm", "delete", "web", "--grace", "60s")
	const port = pagePort + 1
	seed := filepath.Join(t.TempDir(), "seed")
	if err := os.WriteFile(seed, []byte(userData), 0o600); err != nil {
		t.Fatal(err)
	}
	n.blixard("run", "-d", "--name", "system", "-m", "512MiB", "-p", fmt.Sprintf("%d:80", port), "-p", fmt.Sprintf("%d:5432", databasePort),
		"-v", "data:/var/lib/postgresql", "--user-data", seed, s.image, "--", "/sbin/init")
	s.page(1, 2, port)
	s.keeps(1, 2, s.sql(1, 2, "SELECT what FROM kept ORDER BY number")...)
	s.byName(s.nodes[1], "client", "system")
	vm := n.get("system")
	if out, err := n.exec("system", "sh", "-c", "cloud-init status --wait --long; cat /etc/seeded /run/ran; ls /etc/systemd/network"); err != nil ||
		!strings.Contains(out, "status: done") || !strings.Contains(out, "DataSourceNoCloud") || !strings.HasSuffix(out, "written\nran as system\n") {
		t.Errorf("cloud-init: %q, %v", out, err)
	}
	out, err := n.exec("system", "sh", "-c", "cat /proc/1/comm; hostname; hostname -I | tr ' ' '\n'; findmnt -no FSTYPE /var/lib/postgresql; systemctl is-active nginx postgresql@15-main")
	if err != nil {
		t.Errorf("%q, %v", out, err)
	}
	for _, want := range []string{"systemd", "system", vm.GetInterfaces()[0].GetIpv4(), "ext4", "active"} {
		if !slices.Contains(strings.Split(out, "\n"), want) {
			t.Errorf("no line %q in %q", want, out)
		}
	}
	n.blixard("vm", "stop", "system", "--grace", "90s")
	if st := n.get("system").GetStatus(); st.GetStopRung() != "agent" {
		t.Errorf("it was stopped by %q", st.GetStopRung())
	}
	s.volumeClean(n, "data")
}
