package blixard_test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/blixard/blixard/"

// bans is the policy of the import graph: who must not import what, and why. It
// is not changed to make a build work; a reason that no longer holds is.
var bans = []struct {
	from, to []string
	why      string
}{
	{[]string{"agent"}, []string{"state", "replica", "wal", "server", "leader", "scheduler"}, "an agent knows only what the cluster's API tells it, on this node or over a network"},
	{[]string{"state", "scheduler"}, []string{"net", "os", "os/exec", "math/rand", "math/rand/v2", "crypto/rand"}, "pure: no I/O and no randomness; what is chosen travels in the command"},
	{[]string{"state"}, []string{"replica", "wal", "server", "agent", "leader", "scheduler"}, "the state machine knows nobody who drives it"},
	{[]string{"scheduler"}, []string{"replica", "wal", "server", "agent", "leader"}, "a decision from a view, whoever asks"},
	{[]string{"wal"}, []string{"state", "replica", "server"}, "the log does not know what its entries mean"},
	{[]string{"replica"}, []string{"server", "agent", "leader", "scheduler", "driver"}, "Raft carries commands, it does not make them"},
	{[]string{"sim"}, []string{"server", "daemon", "cli", "os", "math/rand"}, "a run is repeated from its seed: no real disk, no chance but the seed's"},
	{[]string{"daemon", "cli", "server", "replica", "leader", "state", "peer"}, []string{"sim"}, "the product does not know that it is simulated"},
	{[]string{"driver", "driver/qemu", "driver/fake"}, []string{"agent", "state", "replica", "server", "supervisor"}, "a driver speaks to a hypervisor through the spawner it is given"},
	{[]string{"daemon", "agent", "cli"}, []string{"driver/fake", "driver/drivertest"}, "a node runs real machines; the fake is for tests"},
	{[]string{"peer"}, []string{"state", "wal", "replica", "server", "agent", "leader"}, "it carries messages and snapshots and knows nothing of what is in them"},
	{[]string{"auth"}, []string{"server", "state", "replica", "agent", "client"}, "who calls and what they may is decided without asking what for"},
	{[]string{"vmnet", "vmnet/dhcp", "vmnet/dns"}, []string{"agent", "state", "replica", "server", "leader", "scheduler", "driver", "supervisor", "daemon"}, "it is told what the node shall have and changes the kernel, whoever decided it"},
	{[]string{"vmnet/dhcp", "vmnet/dns"}, []string{"vmnet"}, "they answer packets and know nothing of the kernel"},
	{[]string{"disk", "disk/image", "disk/volume"}, []string{"agent", "state", "replica", "server", "leader", "driver", "supervisor", "guest", "vmnet", "daemon"}, "they keep files: which there are, and who uses them, is decided elsewhere"},
	{[]string{"internal/jail", "internal/cgroup"}, []string{"api/blixard/v1", "supervisor", "driver", "agent"}, "they confine whatever is started and know nothing of VMs"},
	{[]string{"supervisor"}, []string{"agent", "state", "replica", "server", "guest", "driver/qemu"}, "it outlives the daemon and must stay small and ignorant"},
	{[]string{"guest", "guest/wire", "guest/pid1"}, []string{"agent", "state", "replica", "server", "driver", "supervisor"}, "the guest's protocol serves every hypervisor"},
	{[]string{"cmd/blixard-guest"}, []string{"api/blixard/v1", "net/http", "google.golang.org/grpc", "google.golang.org/protobuf/proto"}, "init must be small and start fast"},
	{[]string{"client"}, []string{"server", "state", "replica", "agent", "daemon"}, "a client knows the API alone"},
	{[]string{"server"}, []string{"daemon", "cli", "client"}, "the API is served to clients, not by them"},
	{[]string{"cli"}, []string{"state", "replica", "wal", "server", "agent", "leader", "scheduler", "driver/qemu"}, "the command line is a user of the client"},
	{[]string{"agent", "server", "replica", "state", "leader", "scheduler", "supervisor", "driver", "disk", "guest", "auth"}, []string{"daemon", "cli"}, "wiring depends on its parts, never the other way"},
}

// cliSees are the direct imports that cli may have although daemon's wiring brings
// more: bans on cli are about direct imports.
var direct = []string{"cli", "supervisor", "agent", "sim"}

type pkg struct {
	ImportPath string
	Imports    []string
	Deps       []string
}

func TestImportGraph(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,Deps", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	pkgs := map[string]pkg{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs[strings.TrimPrefix(p.ImportPath, module)] = p
	}
	for _, ban := range bans {
		for _, from := range ban.from {
			p, ok := pkgs[from]
			if !ok {
				t.Errorf("the policy names a package %s that is not there", from)
				continue
			}
			seen := p.Deps
			if slices.Contains(direct, from) || !isOurs(pkgs, ban.to[0]) {
				seen = p.Imports
			}
			for _, to := range ban.to {
				full := to
				if isOurs(pkgs, to) {
					full = module + to
				}
				if slices.Contains(seen, full) {
					t.Errorf("%s imports %s: %s", from, to, ban.why)
				}
			}
		}
	}
}

func isOurs(pkgs map[string]pkg, path string) bool {
	_, ok := pkgs[path]
	return ok
}
