package daemon_test

import (
	"archive/tar"
	"bytes"
	"context"
	crand "crypto/rand"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// churnTime is how long TestNothingIsLeftBehind makes and deletes, and churnTimeMax
	// how long on a host so busy that not all of it was done by then; churnEnv names a
	// count of rounds instead.
	churnTime, churnTimeMax = 60 * time.Second, 5 * time.Minute
	churnEnv                = "BLIXARD_TEST_ROUNDS"
	// churnLanes do so side by side.
	churnLanes = 3
	// churnKillMin and churnKillMax are between two deaths of the daemon.
	churnKillMin, churnKillMax = 2 * time.Second, 9 * time.Second
	// churnCall bounds one call, also over a death of the daemon.
	churnCall = 30 * time.Second
)

// churn makes and deletes everything at random.
type churn struct {
	*node
	rounds atomic.Int64
	// last is whether no other round begins.
	last func() bool

	mu sync.Mutex
	// counts what was done.
	counts map[string]int
}

func (w *churn) count(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what]++
}

// missing is what has not been done yet.
func (w *churn) missing() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var missing []string
	for _, what := range []string{"import image", "create volume", "create network", "create VM", "VM running"} {
		if w.counts[what] == 0 {
			missing = append(missing, what)
		}
	}
	return missing
}

// TestNothingIsLeftBehind: VMs, images, volumes and networks come and go side by side
// while the daemon is killed again and again; when all are deleted the host has what
// it had.
func TestNothingIsLeftBehind(t *testing.T) {
	c, _ := startSite(t, 1)
	n := c.nodes[0]
	var pristine []string
	eventually(t, "the host has its addresses", 10*time.Second, func() bool {
		pristine = n.census("")
		return !strings.Contains(strings.Join(pristine, "\n"), "tentative")
	})
	// The first VMs bring what stays: the supervisors and their groups, and a record of
	// networks.
	n.create("exclusive", func(s *blixardv1.VMSpec) { s.OnNodeLoss = blixardv1.NodeLossPolicy_failover; s.NoNetwork = true })
	n.awaitRunning("exclusive")
	n.delete("exclusive")
	n.create("shared", nil)
	n.awaitRunning("shared")
	scope := n.scope("shared")
	n.deleteAll()
	var before, unexplained []string
	eventually(t, "only the record stays", time.Minute, func() bool {
		before = n.census(scope)
		more, less := difference(pristine, before)
		unexplained = append(slices.DeleteFunc(more, func(l string) bool { return strings.HasPrefix(l, "file /networks") }), less...)
		return len(unexplained) == 0
	})
	if len(unexplained) > 0 {
		t.Fatalf("two VMs left or took away %q", unexplained)
	}

	w := &churn{node: n, counts: map[string]int{}}
	begun := time.Now()
	w.last = func() bool {
		took := time.Since(begun)
		return took > churnTime && (len(w.missing()) == 0 || took > churnTimeMax)
	}
	if text := os.Getenv(churnEnv); text != "" {
		most, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		w.last = func() bool { return w.rounds.Load() >= most }
	}
	seed := uint64(time.Now().UnixNano())
	var wg sync.WaitGroup
	for lane := range churnLanes {
		wg.Go(func() { w.lane(lane, rand.New(rand.NewPCG(seed, uint64(lane)))) })
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	random, deaths := rand.New(rand.NewPCG(seed, churnLanes)), 0
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		case <-time.After(churnKillMin + time.Duration(random.Int64N(int64(churnKillMax-churnKillMin)))):
			deaths++
			n.kill9()
			n.start()
		}
	}
	t.Logf("seed %d: %d rounds, %d deaths of the daemon in %v: %v", seed, w.rounds.Load(), deaths, time.Since(begun).Round(time.Second), w.counts)
	if missing := w.missing(); len(missing) > 0 {
		t.Errorf("it proves nothing without %q", missing)
	}
	n.deleteAll()
	var more, less []string
	eventually(t, "the host has what it had", time.Minute, func() bool {
		more, less = difference(before, n.census(scope))
		return len(more)+len(less) == 0
	})
	for _, l := range more {
		t.Errorf("left: %s", l)
	}
	for _, l := range less {
		t.Errorf("lost: %s", l)
	}
}

// difference gives what only b has, and what only a has.
func difference(a, b []string) (more, less []string) {
	for _, l := range b {
		if !slices.Contains(a, l) {
			more = append(more, l)
		}
	}
	for _, l := range a {
		if !slices.Contains(b, l) {
			less = append(less, l)
		}
	}
	return more, less
}

// scope is what the names of the node's control groups end in, as a running VM tells.
func (n *node) scope(vm string) string {
	n.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", n.qemuOf(vm)))
	if err != nil {
		n.t.Fatal(err)
	}
	m := regexp.MustCompile(`/blixard/shared(-[0-9a-f]+)/`).FindStringSubmatch(string(b))
	if m == nil {
		return "" // the host has no groups
	}
	return m[1]
}

// census is all that the host has of what a node makes.
func (n *node) census(scope string) []string {
	n.t.Helper()
	var all []string
	for _, dir := range []string{"images", "volumes", "vms", "networks"} {
		top := filepath.Join(n.data, dir)
		_ = filepath.WalkDir(top, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && path != top {
				all = append(all, "file "+strings.TrimPrefix(path, n.data))
			}
			return nil
		})
	}
	for _, args := range []string{"ip -br link", "ip -o addr", "ip route show table all", "bridge fdb", "ip neigh show nud permanent", "nft list ruleset"} {
		out, err := exec.Command("nsenter", append([]string{"--net=/run/netns/" + n.host}, strings.Fields(args)...)...).Output()
		if err != nil {
			n.t.Fatalf("%s: %v", args, err)
		}
		for line := range strings.Lines(string(out)) {
			all = append(all, args+": "+strings.TrimSpace(line))
		}
	}
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6", "raw", "raw6", "packet"} {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", n.cmd.Process.Pid, table))
		for line := range strings.Lines(string(text)) {
			const listens = "0A"
			if f := strings.Fields(line); len(f) > 3 && (!strings.HasPrefix(table, "tcp") || f[3] == listens) {
				all = append(all, "socket "+table+" "+f[1])
			}
		}
	}
	for pid, args := range n.processes() {
		if pid != n.cmd.Process.Pid && pid != n.supervisor("shared") && pid != n.supervisor("exclusive") {
			all = append(all, "process "+args)
		}
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*/blixard/*" + scope + "/vm-*")
	unified, _ := filepath.Glob("/sys/fs/cgroup/blixard/*" + scope + "/vm-*")
	if scope != "" {
		all = append(append(all, groups...), unified...)
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if to, err := os.ReadFile(l); err == nil && strings.Contains(string(to), n.dir) {
			all = append(all, l+" "+string(to))
		}
	}
	return append(all, n.objects()...)
}

// objects are the names of all that is declared.
func (n *node) objects() []string {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), churnCall)
	defer cancel()
	vms, err := n.client.VMs().ListVMs(ctx, &blixardv1.ListVMsRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	volumes, err := n.client.Volumes().ListVolumes(ctx, &blixardv1.ListVolumesRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	networks, err := n.client.Networks().ListNetworks(ctx, &blixardv1.ListNetworksRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	images, err := n.client.Images().ListImages(ctx, &blixardv1.ListImagesRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	var all []string
	for _, o := range vms.GetVms() {
		all = append(all, "vm "+o.GetName())
	}
	for _, o := range volumes.GetVolumes() {
		all = append(all, "volume "+o.GetName())
	}
	for _, o := range networks.GetNetworks() {
		all = append(all, "network "+o.GetName())
	}
	for _, o := range images.GetImages() {
		if o.GetSource() != "bundle" {
			all = append(all, "image "+o.GetName())
		}
	}
	return all
}

// deleteAll deletes all that is declared: VMs first, since they hold the rest.
func (n *node) deleteAll() {
	n.t.Helper()
	for _, kind := range []string{"vm", "volume", "network", "image"} {
		eventually(n.t, "every "+kind+" is gone", 2*time.Minute, func() bool {
			left := 0
			for _, o := range n.objects() {
				k, name, _ := strings.Cut(o, " ")
				if k != kind {
					continue
				}
				left++
				verb := "delete"
				if kind == "image" {
					verb = "remove"
				}
				if out, err := n.command(kind, verb, name).CombinedOutput(); err != nil && !bytes.Contains(out, []byte("not_found")) {
					n.t.Logf("%s %s %s: %v\n%s", kind, verb, name, err, out)
				}
			}
			return left == 0
		})
	}
}

// lane makes and deletes until it is time to end.
func (w *churn) lane(lane int, random *rand.Rand) {
	ctx, cancel := context.WithTimeout(context.Background(), churnCall)
	c, err := client.Dial(ctx, client.Config{Addr: "unix:" + w.socket, Timeout: churnCall})
	cancel()
	if err != nil {
		w.t.Error(err)
		return
	}
	defer func() { _ = c.Close() }()
	for k := 0; !w.last() && !w.t.Failed(); k++ {
		w.round(c, fmt.Sprintf("l%d-%d", lane, k), random)
		w.rounds.Add(1)
	}
}

// call makes a call that the daemon's death may break; what it did then is not known.
// What must never happen is an error of the program's own.
func (w *churn) call(what string, f func(ctx context.Context) error) bool {
	ctx, cancel := context.WithTimeout(context.Background(), churnCall)
	defer cancel()
	err := f(ctx)
	if problem.Is(err, problem.Internal) || problem.Is(err, problem.Invalid) {
		w.t.Errorf("%s: %v", what, err)
	}
	if err == nil {
		w.count(what)
	}
	return err == nil
}

// round is the life of one VM and of what it has.
func (w *churn) round(c *client.Client, name string, random *rand.Rand) {
	spec := &blixardv1.VMSpec{Image: "busybox", MemoryMib: 128, DiskBytes: 64 << 20, Command: []string{"sleep", "1000000"}, NoNetwork: true}
	var after []func() // deletes, which run when the VM is told to go
	if random.IntN(3) == 0 {
		if image, ok := w.importImage(name, random); ok {
			spec.Image = image
		}
		after = append(after, func() {
			w.call("remove image", func(ctx context.Context) error {
				_, err := c.Images().RemoveImage(ctx, &blixardv1.RemoveImageRequest{Name: "churn/" + name + ":1"})
				return err
			})
		})
	}
	if random.IntN(2) == 0 {
		w.call("create volume", func(ctx context.Context) error {
			_, err := c.Volumes().CreateVolume(ctx, &blixardv1.CreateVolumeRequest{Name: name, SizeBytes: 64 << 20})
			return err
		})
		spec.Volumes = []*blixardv1.VolumeAttachment{{Volume: name, Path: "/data"}}
		after = append(after, func() {
			w.call("delete volume", func(ctx context.Context) error {
				_, err := c.Volumes().DeleteVolume(ctx, &blixardv1.DeleteVolumeRequest{Name: name})
				return err
			})
		})
	}
	switch random.IntN(4) {
	case 0:
		w.call("create network", func(ctx context.Context) error {
			_, err := c.Networks().CreateNetwork(ctx, &blixardv1.CreateNetworkRequest{
				Name: name, Type: []blixardv1.NetworkType_Enum{blixardv1.NetworkType_nat, blixardv1.NetworkType_user}[random.IntN(2)],
			})
			return err
		})
		spec.NoNetwork, spec.Networks = false, []*blixardv1.NetworkAttachment{{Network: name}}
		after = append(after, func() {
			w.call("delete network", func(ctx context.Context) error {
				_, err := c.Networks().DeleteNetwork(ctx, &blixardv1.DeleteNetworkRequest{Name: name})
				return err
			})
		})
	case 1:
		spec.NoNetwork = false // the default one
		spec.Ports = []*blixardv1.PublishedPort{{HostPort: uint32(10000 + random.IntN(20000)), GuestPort: 80, Protocol: blixardv1.Protocol_tcp}}
	}
	if random.IntN(5) == 0 {
		spec.OnNodeLoss = blixardv1.NodeLossPolicy_failover
		spec.Volumes = nil
	}
	made := w.call("create VM", func(ctx context.Context) error {
		_, err := c.VMs().CreateVM(ctx, &blixardv1.CreateVMRequest{Name: name, Spec: spec, IdempotencyKey: client.NewKey()})
		if problem.HasCode(err, "network.not_found") || problem.HasCode(err, "volume.not_found") {
			return problem.New(problem.NotFound, "test", "what was to be made before was not")
		}
		return err
	})
	if made {
		wanted := []blixardv1.AllocationState_Enum{0, blixardv1.AllocationState_pending, blixardv1.AllocationState_starting, blixardv1.AllocationState_running}[random.IntN(4)]
		w.call("wait", func(ctx context.Context) error {
			_, err := c.WaitVM(ctx, name, func(vm *blixardv1.VM, gone bool) (bool, error) {
				state := vm.GetStatus().GetState()
				if state == blixardv1.AllocationState_running || state == blixardv1.AllocationState_failed {
					w.count("VM " + state.String())
				}
				return gone || state >= wanted, nil
			})
			return err
		})
	}
	deleteVM := func() {
		w.call("delete VM", func(ctx context.Context) error {
			_, err := c.VMs().DeleteVM(ctx, &blixardv1.DeleteVMRequest{Name: name, Force: random.IntN(2) == 0})
			return err
		})
	}
	deleteVM()
	for _, f := range after {
		if random.IntN(2) == 0 {
			f() // while the VM may hold it; the rest is for the end
		}
	}
}

// importImage brings in a small image that no other round has.
func (w *churn) importImage(name string, random *rand.Rand) (string, bool) {
	image := "churn/" + name + ":1"
	path := filepath.Join(w.dir, name+".tar")
	if err := smallArchive(path, image, random); err != nil {
		w.t.Error(err)
		return "", false
	}
	defer func() { _ = os.Remove(path) }()
	cmd := w.command("--timeout", churnCall.String(), "image", "import", path)
	out, err := cmd.CombinedOutput()
	if bytes.Contains(out, []byte("code: internal")) {
		w.t.Errorf("image import: %v\n%s", err, out)
	}
	if err == nil {
		w.count("import image")
	}
	return image, err == nil
}

// smallArchive writes an image with a shell and some bytes of its own.
func smallArchive(path, image string, random *rand.Rand) error {
	shell, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return err
	}
	unique := make([]byte, 1+random.IntN(1<<20))
	_, _ = crand.Read(unique)
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for name, content := range map[string][]byte{"bin/busybox": shell, "unique": unique} {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		if _, err := w.Write(content); err != nil {
			return err
		}
	}
	for _, applet := range []string{"sh", "sleep"} {
		if err := w.WriteHeader(&tar.Header{Name: "bin/" + applet, Linkname: "busybox", Typeflag: tar.TypeSymlink}); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer.Bytes())), nil })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return err
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	cfg.Config.Env = []string{"PATH=/bin"}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return err
	}
	ref, err := name.NewTag(image)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(path, ref, img)
}
