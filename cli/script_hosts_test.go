package cli_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"sync/atomic"

	"github.com/rogpeppe/go-internal/testscript"
)

// hostsMax of one script: as many as its daemons, which share the machine.
const hostsMax = 3

// hostSets counts the sets of hosts of this process, so that each has names of its
// own.
var hostSets atomic.Int64

// hostsCommand is "hosts N": makes N network namespaces, which stand for hosts. Each
// has its loopback and the address 192.0.2.K/24 on a switch, a bridge in a namespace
// of its own. $HOSTK is the name of host K, $SWITCH that of the switch. They are gone
// when the script is; those of tests that were killed go with the next.
func hostsCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: hosts N")
	}
	count, err := strconv.Atoi(args[0])
	if err != nil || count < 1 || count > hostsMax {
		ts.Fatalf("hosts: from 1 to %d", hostsMax)
	}
	set := fmt.Sprintf("script%d-%d", os.Getpid(), hostSets.Add(1))
	ip := func(args ...string) {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			ts.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	for _, name := range abandonedHosts() {
		_ = exec.Command("ip", "netns", "del", name).Run() // another test may be faster
	}
	add := func(variable, name string) {
		ip("netns", "add", name)
		ts.Defer(func() { ip("netns", "del", name) })
		ip("-n", name, "link", "set", "lo", "up")
		ts.Setenv(variable, name)
	}
	hub := set + "-switch"
	add("SWITCH", hub)
	ip("-n", hub, "link", "add", "bridge", "type", "bridge")
	ip("-n", hub, "link", "set", "bridge", "up")
	for k := 1; k <= count; k++ {
		name, port := fmt.Sprintf("%s-%d", set, k), fmt.Sprintf("port%d", k)
		add(fmt.Sprintf("HOST%d", k), name)
		ip("-n", hub, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
		ip("-n", hub, "link", "set", port, "master", "bridge", "up")
		ip("-n", name, "addr", "add", fmt.Sprintf("192.0.2.%d/24", k), "dev", "eth0")
		ip("-n", name, "link", "set", "eth0", "up")
	}
}

var hostName = regexp.MustCompile(`^script(\d+)-\d+-`)

// abandonedHosts are those whose test is not there any more.
func abandonedHosts() []string {
	var names []string
	dirs, _ := os.ReadDir("/run/netns")
	for _, d := range dirs {
		found := hostName.FindStringSubmatch(d.Name())
		if found == nil {
			continue
		}
		if _, err := os.Stat("/proc/" + found[1]); errors.Is(err, fs.ErrNotExist) {
			names = append(names, d.Name())
		}
	}
	return names
}

// onCommand is "on K COMMAND...": the command runs on host K. It may stand behind
// exits, refuses and await. What runs in the background is written `exec ip netns
// exec $HOSTK COMMAND... &`.
func onCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: [!] on K COMMAND [ARG]...")
	}
	argv := program(ts, append([]string{"on"}, args...))
	if err := ts.Exec(argv[0], argv[1:]...); (err == nil) == neg {
		ts.Fatalf("%v: %v", argv, err)
	}
}

// program is what a command line runs: "on K COMMAND..." is that command on host K.
func program(ts *testscript.TestScript, argv []string) []string {
	if len(argv) < 3 || argv[0] != "on" {
		return argv
	}
	host := ts.Getenv("HOST" + argv[1])
	if host == "" {
		ts.Fatalf("there is no host %s", argv[1])
	}
	return append([]string{"ip", "netns", "exec", host}, argv[2:]...)
}
