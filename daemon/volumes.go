package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/disk/volume"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// Limits of keeping volumes.
const (
	// deleteEvery is how often deleted volumes are looked for, beside when one changed:
	// for those that could not be removed.
	deleteEvery = time.Minute
	// moveChunkBytes is one message of a volume on its way to another node.
	moveChunkBytes = 512 << 10
)

// runningVMs is what the keeper asks of the agent about VMs that use volumes.
type runningVMs interface {
	// Hold keeps the processors of a running VM still until release is called.
	Hold(ctx context.Context, allocID string) (release func(), err error)
	// GrowVolume tells a running VM that its volume of that index grew.
	GrowVolume(ctx context.Context, allocID string, index int, bytes uint64) error
}

// volumeKeeper is the node's part of volumes. It is safe for concurrent use.
type volumeKeeper struct {
	nodeID string
	// root is the directory of store.
	root   string
	store  *volume.Store
	view   func() *state.View
	client *client.Client
	nodes  *nodes
	log    *slog.Logger

	mu  sync.Mutex
	vms runningVMs
	// users are the allocations that use a volume, with its index in each.
	users map[string]map[string]int
	// busy volumes have a step under way that no VM may see.
	busy map[string]bool
	// arriving volumes come from other nodes.
	arriving map[string]bool
}

func newVolumeKeeper(nodeID, root string, store *volume.Store, view func() *state.View, c *client.Client, nodes *nodes, log *slog.Logger) *volumeKeeper {
	return &volumeKeeper{
		nodeID: nodeID, root: root, store: store, view: view, client: c, nodes: nodes, log: log,
		users: map[string]map[string]int{}, busy: map[string]bool{}, arriving: map[string]bool{},
	}
}

func (k *volumeKeeper) setVMs(vms runningVMs) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.vms = vms
}

// Attach implements agent.Volumes.
func (k *volumeKeeper) Attach(ctx context.Context, a *blixardv1.Allocation) ([]string, error) {
	if err := k.use(a); err != nil {
		return nil, err
	}
	var paths []string
	for _, v := range a.GetVolumes() {
		path, err := k.attachOne(ctx, v)
		if err != nil {
			k.Detach(a.GetId())
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

func (k *volumeKeeper) attachOne(ctx context.Context, v *blixardv1.AllocatedVolume) (string, error) {
	known := k.view().Volume(v.GetVolumeId())
	if known == nil || known.GetNodeId() != k.nodeID {
		return "", problem.New(problem.Fenced, "volume.elsewhere", "volume %q is not on this node any more", v.GetName()).
			WithHint("stop the VM; it is started where its volume is")
	}
	path, _, err := k.store.Ensure(ctx, v.GetVolumeId(), known.GetSizeBytes(), known.GetMade())
	if err != nil {
		return "", err
	}
	if !known.GetMade() {
		// Before anything is written on it.
		if _, err := k.register(ctx, &blixardv1.RegisterVolumeRequest{VolumeId: v.GetVolumeId(), Change: &blixardv1.RegisterVolumeRequest_Made{Made: true}}); err != nil {
			return "", err
		}
	}
	if v.GetReadOnly() {
		return path, nil // who only reads needs no fence, and must not fence off others that read
	}
	return path, k.store.Attach(ctx, v.GetVolumeId(), v.GetEpoch())
}

// use notes that an allocation uses its volumes, unless one of them has a step under
// way.
func (k *volumeKeeper) use(a *blixardv1.Allocation) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, v := range a.GetVolumes() {
		if k.busy[v.GetVolumeId()] {
			return problem.New(problem.Unavailable, "volume.busy", "volume %q is being copied or changed", v.GetName()).WithHint("the VM starts when that is done")
		}
	}
	k.useLocked(a)
	return nil
}

func (k *volumeKeeper) useLocked(a *blixardv1.Allocation) {
	for n, v := range a.GetVolumes() {
		if k.users[v.GetVolumeId()] == nil {
			k.users[v.GetVolumeId()] = map[string]int{}
		}
		k.users[v.GetVolumeId()][a.GetId()] = n
	}
}

// Adopt implements agent.Volumes.
func (k *volumeKeeper) Adopt(a *blixardv1.Allocation) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.useLocked(a)
}

// Detach implements agent.Volumes.
func (k *volumeKeeper) Detach(allocID string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, users := range k.users {
		if delete(users, allocID); len(users) == 0 {
			delete(k.users, id)
		}
	}
}

// begin takes a volume for a step; the function it gives ends that. users are the
// allocations that use it, which is refused unless shared is set.
func (k *volumeKeeper) begin(v *blixardv1.Volume, shared bool) (users map[string]int, end func(), err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.vms == nil {
		return nil, nil, problem.New(problem.Unavailable, "node.starting", "the node's agent is not up yet").WithHint("try again in a moment")
	}
	if k.busy[v.GetId()] {
		return nil, nil, problem.New(problem.Conflict, "volume.busy", "volume %q is being copied or changed already", v.GetName()).WithHint("wait until that is done")
	}
	users = map[string]int{}
	for id, n := range k.users[v.GetId()] {
		users[id] = n
	}
	if len(users) > 0 && !shared {
		return nil, nil, problem.New(problem.Conflict, "volume.in_use", "volume %q is in use by a VM that runs", v.GetName()).
			WithHint("stop the VM first; `blixard volume show %s` names it", v.GetName())
	}
	k.busy[v.GetId()] = true
	return users, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.busy, v.GetId())
	}, nil
}

// register tells the cluster what was done with a volume.
func (k *volumeKeeper) register(ctx context.Context, req *blixardv1.RegisterVolumeRequest) (*blixardv1.Volume, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), registerTimeout)
	defer cancel()
	req.NodeId, req.IdempotencyKey = k.nodeID, client.NewKey()
	resp, err := k.client.Volumes().RegisterVolume(ctx, req)
	if err != nil {
		return nil, problem.From(err)
	}
	return resp.GetVolume(), nil
}

// Used implements server.Volumes.
func (k *volumeKeeper) Used(id string) (uint64, error) {
	info, err := k.store.Stat(context.Background(), id)
	return info.UsedBytes, err
}

// Resize implements server.Volumes.
func (k *volumeKeeper) Resize(ctx context.Context, v *blixardv1.Volume, bytes uint64) (*blixardv1.Volume, error) {
	bytes = bytes &^ 4095 // whole blocks
	if v.GetNodeId() == "" || !v.GetMade() {
		return k.register(ctx, sizeIs(v, bytes))
	}
	users, end, err := k.begin(v, true)
	if err != nil {
		return nil, err
	}
	defer end()
	if len(users) == 0 {
		if err := k.store.Resize(ctx, v.GetId(), bytes); err != nil {
			return nil, err
		}
		return k.register(ctx, sizeIs(v, bytes))
	}
	if bytes < v.GetSizeBytes() {
		return nil, problem.New(problem.Conflict, "volume.in_use", "volume %q can't become smaller while a VM uses it", v.GetName()).WithHint("stop the VM first")
	}
	if err := k.store.GrowFile(ctx, v.GetId(), bytes); err != nil {
		return nil, err
	}
	// The state first: from here on the disk has that size.
	grown, err := k.register(ctx, sizeIs(v, bytes))
	if err != nil {
		return nil, err
	}
	for alloc, index := range users {
		if err := k.vms.GrowVolume(ctx, alloc, index, bytes); err != nil {
			return nil, problem.New(problem.Unavailable, "volume.not_grown", "volume %q has its new size, but the running VM does not use it yet", v.GetName()).
				WithCause(err).WithHint("restart the VM, or repeat this")
		}
	}
	return grown, nil
}

func sizeIs(v *blixardv1.Volume, bytes uint64) *blixardv1.RegisterVolumeRequest {
	return &blixardv1.RegisterVolumeRequest{VolumeId: v.GetId(), Change: &blixardv1.RegisterVolumeRequest_SizeBytes{SizeBytes: bytes}}
}

// snapshotOf finds a snapshot by its name.
func snapshotOf(v *blixardv1.Volume, name string) (*blixardv1.VolumeSnapshot, error) {
	for _, s := range v.GetSnapshots() {
		if s.GetName() == name {
			return s, nil
		}
	}
	return nil, problem.New(problem.NotFound, "volume.snapshot_not_found", "volume %q has no snapshot %q", v.GetName(), name).
		WithHint("`blixard volume show %s` lists its snapshots", v.GetName())
}

// Snapshot implements server.Volumes. VMs that use the volume stand still meanwhile.
func (k *volumeKeeper) Snapshot(ctx context.Context, v *blixardv1.Volume, name string) (*blixardv1.Volume, error) {
	if _, err := snapshotOf(v, name); err == nil {
		return nil, problem.New(problem.Conflict, "volume.snapshot_taken", "volume %q has a snapshot %q already", v.GetName(), name).WithHint("choose another name")
	}
	users, end, err := k.begin(v, true)
	if err != nil {
		return nil, err
	}
	defer end()
	for alloc := range users {
		release, err := k.vms.Hold(ctx, alloc)
		if err != nil {
			return nil, err
		}
		defer release()
	}
	s := &blixardv1.VolumeSnapshot{Name: name, Id: "snap-" + strings.ToLower(rand.Text()[:16]), SizeBytes: v.GetSizeBytes()}
	if err := k.store.Snapshot(ctx, v.GetId(), s.GetId(), nil); err != nil {
		return nil, err
	}
	next, err := k.register(ctx, &blixardv1.RegisterVolumeRequest{VolumeId: v.GetId(), Change: &blixardv1.RegisterVolumeRequest_Snapshot{Snapshot: s}})
	if err != nil && !unsure(err) {
		err = errors.Join(err, k.store.DeleteSnapshot(context.WithoutCancel(ctx), v.GetId(), s.GetId()))
	}
	return next, err
}

// unsure is whether a change may have been made all the same.
func unsure(err error) bool { return problem.Is(problem.From(err), problem.Unavailable) }

// Restore implements server.Volumes.
func (k *volumeKeeper) Restore(ctx context.Context, v *blixardv1.Volume, name string) error {
	s, err := snapshotOf(v, name)
	if err != nil {
		return err
	}
	_, end, err := k.begin(v, false)
	if err != nil {
		return err
	}
	defer end()
	if err := k.store.Restore(ctx, v.GetId(), s.GetId()); err != nil {
		return err
	}
	if s.GetSizeBytes() == v.GetSizeBytes() {
		return nil
	}
	_, err = k.register(ctx, sizeIs(v, s.GetSizeBytes()))
	return err
}

// DropSnapshot implements server.Volumes. The cluster forgets it first: a file that
// stays is in nobody's way.
func (k *volumeKeeper) DropSnapshot(ctx context.Context, v *blixardv1.Volume, name string) (*blixardv1.Volume, error) {
	s, err := snapshotOf(v, name)
	if err != nil {
		return nil, err
	}
	_, end, err := k.begin(v, true)
	if err != nil {
		return nil, err
	}
	defer end()
	next, err := k.register(ctx, &blixardv1.RegisterVolumeRequest{VolumeId: v.GetId(), Change: &blixardv1.RegisterVolumeRequest_DroppedSnapshot{DroppedSnapshot: name}})
	if err != nil {
		return nil, err
	}
	return next, k.store.DeleteSnapshot(ctx, v.GetId(), s.GetId())
}

// Clone implements server.Volumes.
func (k *volumeKeeper) Clone(ctx context.Context, v *blixardv1.Volume, snapshot string, clone *blixardv1.Volume) (*blixardv1.Volume, error) {
	id, source := "", v.GetName()
	clone.SizeBytes = v.GetSizeBytes()
	if snapshot != "" {
		s, err := snapshotOf(v, snapshot)
		if err != nil {
			return nil, err
		}
		id, source, clone.SizeBytes = s.GetId(), source+"@"+snapshot, s.GetSizeBytes()
	}
	clone.Source = source
	_, end, err := k.begin(v, snapshot != "")
	if err != nil {
		return nil, err
	}
	defer end()
	if _, err := k.store.Clone(ctx, v.GetId(), id, clone.GetId(), nil); err != nil {
		return nil, err
	}
	made, err := k.register(ctx, &blixardv1.RegisterVolumeRequest{VolumeId: v.GetId(), Change: &blixardv1.RegisterVolumeRequest_Clone{Clone: clone}})
	if err != nil && !unsure(err) {
		err = errors.Join(err, k.store.Delete(context.WithoutCancel(ctx), clone.GetId()))
	}
	return made, err
}

// Move implements server.Volumes.
func (k *volumeKeeper) Move(ctx context.Context, v *blixardv1.Volume, nodeID string, progress func(done, total uint64)) (*blixardv1.Volume, error) {
	_, end, err := k.begin(v, false)
	if err != nil {
		return nil, err
	}
	defer end()
	if v.GetMade() {
		if err := k.send(ctx, v, nodeID, progress); err != nil {
			return nil, err
		}
	}
	moved, err := k.register(ctx, &blixardv1.RegisterVolumeRequest{VolumeId: v.GetId(), Change: &blixardv1.RegisterVolumeRequest_Moved{
		Moved: &blixardv1.VolumeMove{ToNodeId: nodeID, Epoch: v.GetEpoch()},
	}})
	if err != nil {
		return nil, err
	}
	if !v.GetMade() {
		return moved, nil
	}
	// Only now, when the cluster knows that the other copy counts.
	return moved, k.store.Delete(ctx, v.GetId())
}

// send copies all files of a volume to another node, which checks them.
func (k *volumeKeeper) send(ctx context.Context, v *blixardv1.Volume, nodeID string, progress func(done, total uint64)) error {
	conn, err := k.nodes.Conn(nodeID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := blixardv1.NewVolumeServiceClient(conn).ReceiveVolume(ctx)
	if err != nil {
		return problem.From(err)
	}
	files, err := k.store.Files(ctx, v.GetId())
	if err != nil {
		return err
	}
	sizes, total := make([]uint64, len(files)), uint64(0)
	for n, f := range files {
		if sizes[n], err = k.store.Size(ctx, v.GetId(), f); err != nil {
			return err
		}
		total += sizes[n]
	}
	done := uint64(0)
	for n, f := range files {
		told := func(offset uint64) { progress(done+offset, total) }
		if err := k.sendFile(ctx, stream, v, f, sizes[n], told); err != nil {
			return err
		}
		done += sizes[n]
		progress(done, total)
	}
	return stream.CloseSend()
}

func (k *volumeKeeper) sendFile(ctx context.Context, stream blixardv1.VolumeService_ReceiveVolumeClient, v *blixardv1.Volume, file string, size uint64, told func(uint64)) error {
	answer := func() (*blixardv1.ReceiveVolumeResponse, error) {
		m, err := stream.Recv()
		if err != nil {
			return nil, problem.From(err)
		}
		return m, nil
	}
	if err := stream.Send(&blixardv1.ReceiveVolumeRequest{Volume: v, File: file, Size: size}); err != nil {
		_, err = answer()
		return err
	}
	m, err := answer()
	if err != nil {
		return err
	}
	if m.GetVerified() {
		return nil // an earlier try brought it
	}
	_, digest, err := k.store.Send(ctx, v.GetId(), file, m.GetHave(), func(offset uint64, data []byte) error {
		for len(data) > 0 {
			n := min(len(data), moveChunkBytes)
			if err := stream.Send(&blixardv1.ReceiveVolumeRequest{Offset: offset, Data: data[:n]}); err != nil {
				return err
			}
			offset, data = offset+uint64(n), data[n:]
		}
		told(offset)
		return nil
	})
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err == nil {
		_ = stream.Send(&blixardv1.ReceiveVolumeRequest{Digest: digest})
	}
	if m, err = answer(); err != nil {
		return err
	}
	if !m.GetVerified() {
		return problem.New(problem.Internal, "volume.move", "the other node does not say that it has %s", file)
	}
	return nil
}

// Receive implements server.Volumes.
func (k *volumeKeeper) Receive(stream blixardv1.VolumeService_ReceiveVolumeServer) error {
	cleared := false
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		v := m.GetVolume()
		if v == nil {
			return problem.New(problem.Invalid, "volume.move", "the first message of a file must name its volume")
		}
		if known := k.view().Volume(v.GetId()); known != nil && known.GetNodeId() == k.nodeID {
			return problem.New(problem.Conflict, "volume.here", "volume %q is on this node already", known.GetName())
		}
		if !cleared {
			if err := k.clearGivenUp(stream.Context(), v); err != nil {
				return err
			}
			cleared = true
		}
		if err := k.receiveFile(stream, m); err != nil {
			return err
		}
	}
}

// clearGivenUp removes a whole copy of a volume that is about to arrive: an earlier
// move brought it and was given up, and its owner has gone on writing since.
func (k *volumeKeeper) clearGivenUp(ctx context.Context, v *blixardv1.Volume) error {
	files, err := k.store.Files(ctx, v.GetId())
	if problem.Is(err, problem.NotFound) || err == nil && !slices.Contains(files, volume.DiskFile) {
		return nil
	}
	if err != nil {
		return err
	}
	k.log.Info("a copy of an earlier move that was given up is removed", "volume", v.GetName())
	return k.store.Delete(ctx, v.GetId())
}

func (k *volumeKeeper) receiveFile(stream blixardv1.VolumeService_ReceiveVolumeServer, first *blixardv1.ReceiveVolumeRequest) (err error) {
	ctx := stream.Context()
	in, have, err := k.store.Receive(ctx, first.GetVolume().GetId(), first.GetFile(), first.GetSize())
	if problem.HasCode(err, "volume.exists") {
		return stream.Send(&blixardv1.ReceiveVolumeResponse{Have: first.GetSize(), Verified: true})
	}
	if err != nil {
		return err
	}
	finished := false
	defer func() {
		if !finished {
			err = errors.Join(err, in.Suspend())
		}
	}()
	if err := stream.Send(&blixardv1.ReceiveVolumeResponse{Have: have}); err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if len(m.GetDigest()) > 0 {
			finished = true
			if err := in.Finish(ctx, m.GetDigest()); err != nil {
				return err
			}
			return stream.Send(&blixardv1.ReceiveVolumeResponse{Have: first.GetSize(), Verified: true})
		}
		if err := in.Write(m.GetOffset(), m.GetData()); err != nil {
			return err
		}
	}
}

// run removes deleted volumes until ctx ends.
func (k *volumeKeeper) run(ctx context.Context, changed <-chan struct{}) {
	tick := time.NewTicker(deleteEvery)
	defer tick.Stop()
	for {
		for _, v := range k.view().Volumes() {
			if v.GetDeleting() && v.GetNodeId() == k.nodeID {
				if err := k.delete(ctx, v); err != nil && ctx.Err() == nil {
					k.log.Warn("a deleted volume can't be removed yet", "volume", v.GetName(), "err", err)
				}
			}
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (k *volumeKeeper) delete(ctx context.Context, v *blixardv1.Volume) error {
	_, end, err := k.begin(v, false)
	if err != nil {
		return err
	}
	defer end()
	if err := k.store.Delete(ctx, v.GetId()); err != nil && !problem.Is(err, problem.NotFound) {
		return err
	}
	_, err = k.register(ctx, &blixardv1.RegisterVolumeRequest{VolumeId: v.GetId(), Change: &blixardv1.RegisterVolumeRequest_Removed{Removed: true}})
	return err
}

// dir is where a volume's files are.
func (k *volumeKeeper) dir(id string) string { return filepath.Join(k.root, id) }

// strays are volumes whose disks are here and that the cluster does not have on this
// node. They are never removed by themselves: they may be all that is left.
func (k *volumeKeeper) strays(ctx context.Context) ([]string, error) {
	list, err := k.store.List(ctx)
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, info := range list {
		if v := k.view().Volume(info.ID); v == nil || v.GetNodeId() != k.nodeID {
			ids = append(ids, info.ID)
		}
	}
	slices.Sort(ids)
	return ids, nil
}
