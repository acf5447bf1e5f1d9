package daemon_test

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

const (
	// hubAddress is the outside's, and metadataAddress that of a cloud's metadata.
	hubAddress, metadataAddress = "10.99.0.254", "169.254.169.254"
	// answer of all servers of hosts.
	answer = "an answer of the host\n"
)

// serveIn has a server in a network namespace answer until the test ends.
func serveIn(t testing.TB, path, addr string) {
	t.Helper()
	var l net.Listener
	err := inside(path, func() (err error) {
		l, err = net.Listen("tcp", addr)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(answer)) }), ReadHeaderTimeout: requestTimeout}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		_ = s.Close()
		wg.Wait()
	})
}

// sh runs a script in a VM and gives what it printed, whatever its exit code is.
func (n *node) sh(vm, script string) string {
	n.t.Helper()
	out, _ := n.exec(vm, "sh", "-c", script)
	return strings.TrimSpace(out)
}

// TestHostileGuest: root of a VM takes another's MAC and IP, and asks for what is the
// host's. Nobody hears the forged identity, its owner works on, and the host is closed.
func TestHostileGuest(t *testing.T) {
	c, h := startSite(t, 2)
	first, second := c.nodes[0], c.nodes[1]
	hub := filepath.Join("/run/netns", h.hub)
	for _, a := range []string{hubAddress + "/24", metadataAddress + "/32"} {
		run(t, "", "ip", "-n", h.hub, "addr", "add", a, "dev", "bridge")
	}
	for k := range h.name {
		run(t, "", "ip", "-n", h.name[k], "route", "add", metadataAddress, "via", hubAddress)
		serveIn(t, h.path(k), ":9999")
	}
	serveIn(t, hub, ":80")
	for name, on := range map[string]string{"attacker": "n1", "victim": "n1", "near": "n1", "far": "n2"} {
		first.blixard("volume", "create", name, "--size", "64MiB", "--node", on)
		first.create(name, func(s *blixardv1.VMSpec) {
			s.Volumes = []*blixardv1.VolumeAttachment{{Volume: name, Path: "/mnt"}}
			s.Command = []string{"sh", "-c", "echo I am " + name + " >/index.html; exec httpd -f -h /"}
		})
	}
	address := map[string]*blixardv1.Interface{}
	for _, name := range []string{"attacker", "victim", "near", "far"} {
		address[name] = first.awaitRunning(name).GetInterfaces()[0]
	}
	of := map[string]*node{"attacker": first, "victim": first, "near": first, "far": second}
	victim, gateway := address["victim"], strings.TrimSpace(first.sh("attacker", "ip route | sed -n 's/^default via \\([0-9.]*\\).*/\\1/p'"))
	victimWorks := func(when string) {
		t.Helper()
		for _, name := range []string{"near", "far"} {
			eventually(t, fmt.Sprintf("%s: %s reaches the victim", when, name), 30*time.Second, func() bool {
				return of[name].sh(name, "timeout 5 wget -q -O - http://victim/") == "I am victim"
			})
			for _, where := range []string{"victim", victim.GetIpv4(), "[" + victim.GetIpv6() + "]"} {
				script := "for k in 1 2 3; do timeout 5 wget -q -O - http://" + where + "/ & done; wait"
				if got := of[name].sh(name, script); !strings.HasPrefix(got, "I am victim") || strings.Contains(got, "attacker") {
					t.Errorf("%s: %s asked %s and was answered %q", when, name, where, got)
				}
			}
			if got := of[name].sh(name, "ip neigh show "+victim.GetIpv4()); got != "" && !strings.Contains(got, victim.GetMac()) {
				t.Errorf("%s: %s has the neighbour %q", when, name, got)
			}
		}
		if got := first.sh("victim", "timeout 5 wget -q -O - http://"+hubAddress+"/"); got != strings.TrimSpace(answer) {
			t.Errorf("%s: the victim's way out: %q", when, got)
		}
	}
	victimWorks("before")

	// What a guest may: its own identity, and the outside.
	if gateway == "" {
		t.Fatal("the attacker has no gateway")
	}
	echoes := func(name string) string {
		t.Helper()
		return of[name].sh(name, "grep ^Icmp: /proc/net/snmp | tail -1 | cut -d' ' -f10; grep ^Icmp6InEchos /proc/net/snmp6")
	}
	for _, name := range []string{"near", "far"} {
		before := echoes(name)
		if got := first.sh("attacker", "ping -c 2 -W 2 "+address[name].GetIpv4()+" >/dev/null && echo reached"); got != "reached" {
			t.Errorf("the attacker does not reach %s by its own address", name)
		}
		if after := echoes(name); after == before {
			t.Errorf("%s counts no echoes: %s, %s", name, before, after)
		}
	}

	t.Log("the host is closed")
	for _, k := range []int{0, 1} {
		// From a host itself all of it answers.
		if got, err := h.get(k, "http://"+metadataAddress+"/"); err != nil || got != answer {
			t.Fatalf("host %d: %q, %v", k+1, got, err)
		}
	}
	// reached gives those of some addresses and ports that the attacker connects to.
	reached := func(where ...string) string {
		t.Helper()
		script := ""
		for _, w := range where {
			script += fmt.Sprintf("{ timeout 5 nc %s </dev/null && echo reached %s; } & ", w, w)
		}
		return first.sh("attacker", script+"wait; echo done")
	}
	if got := reached(hubAddress + " 80"); got != "reached "+hubAddress+" 80\ndone" {
		t.Errorf("the attacker does not reach the outside: %q", got)
	}
	gateway6 := first.sh("attacker", "ip -6 route | sed -n 's/^default via \\([0-9a-f:]*\\).*/\\1/p'")
	closed := []string{metadataAddress + " 80"}
	for _, host := range []string{gateway, gateway6, "10.99.0.1"} {
		for _, port := range []string{"7700", "7701", "9999"} {
			if host != "" {
				closed = append(closed, host+" "+port)
			}
		}
	}
	if got := reached(closed...); got != "done" {
		t.Errorf("the attacker reaches what is the host's: %q", got)
	}

	t.Log("another's IP")
	forged := func(change string) {
		t.Helper()
		first.sh("attacker", change)
		before := map[string]string{"near": echoes("near"), "far": echoes("far")}
		for name := range before {
			first.sh("attacker", fmt.Sprintf("ping -c 3 -W 1 -I %s %s & ping -c 3 -W 1 -I %s %s & arping -c 2 -U -I eth0 -s %s %s & arping -c 2 -A -I eth0 -s %s %s & arping -c 2 -w 2 -I eth0 -s %s %s & wait",
				victim.GetIpv4(), address[name].GetIpv4(), victim.GetIpv6(), address[name].GetIpv6(),
				victim.GetIpv4(), victim.GetIpv4(), victim.GetIpv4(), victim.GetIpv4(), victim.GetIpv4(), address[name].GetIpv4()))
		}
		for name, was := range before {
			if now := echoes(name); now != was {
				t.Errorf("%s: %s heard the attacker: echoes %q, before %q", change, name, now, was)
			}
		}
		victimWorks(change)
		if got := reached(closed...); got != "done" {
			t.Errorf("%s: the attacker reaches what is the host's: %q", change, got)
		}
	}
	forged(fmt.Sprintf("ip addr add %s/16 dev eth0; ip addr add %s/64 dev eth0 nodad", victim.GetIpv4(), victim.GetIpv6()))
	t.Log("another's MAC")
	forged("ip link set eth0 down; ip link set eth0 address " + victim.GetMac() + "; ip link set eth0 up; ip route add default via " + gateway)
	t.Log("the gateway's identity")
	own := address["attacker"]
	first.sh("attacker", fmt.Sprintf("ip link set eth0 down; ip link set eth0 address %s; ip link set eth0 up; ip addr add %s/16 dev eth0; arping -c 3 -U -I eth0 -s %s %s",
		own.GetMac(), gateway, gateway, gateway))
	victimWorks("the gateway's IP")

	t.Log("and with its own again, it is heard")
	first.sh("attacker", fmt.Sprintf("ip addr flush dev eth0; ip addr add %s/16 dev eth0", own.GetIpv4()))
	for _, name := range []string{"near", "far"} {
		eventually(t, "the attacker is heard by "+name, 20*time.Second, func() bool {
			return first.sh("attacker", "ping -c 1 -W 2 "+address[name].GetIpv4()+" >/dev/null && echo reached") == "reached"
		})
	}
}
