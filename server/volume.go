package server

import (
	"context"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// Volumes is the node's own part of volumes that it has: files, and what the cluster
// is told of them. Implementations are safe for concurrent use; steps of one volume
// wait for each other.
type Volumes interface {
	// Used is what a volume takes on the disk, in bytes.
	Used(id string) (uint64, error)
	Resize(ctx context.Context, v *blixardv1.Volume, bytes uint64) (*blixardv1.Volume, error)
	Snapshot(ctx context.Context, v *blixardv1.Volume, name string) (*blixardv1.Volume, error)
	Restore(ctx context.Context, v *blixardv1.Volume, name string) error
	DropSnapshot(ctx context.Context, v *blixardv1.Volume, name string) (*blixardv1.Volume, error)
	// Clone makes another volume of one, or of its snapshot when that is named.
	Clone(ctx context.Context, v *blixardv1.Volume, snapshot string, clone *blixardv1.Volume) (*blixardv1.Volume, error)
	// Move sends a volume to another node.
	Move(ctx context.Context, v *blixardv1.Volume, nodeID string, progress func(done, total uint64)) (*blixardv1.Volume, error)
	// Receive takes what Move sends.
	Receive(stream blixardv1.VolumeService_ReceiveVolumeServer) error
}

const defaultVolumeBytes = 1 << 30

// volumeService is VolumeService; see the .proto for its contract.
type volumeService struct {
	blixardv1.UnimplementedVolumeServiceServer
	*Server
}

func (s volumeService) CreateVolume(ctx context.Context, req *blixardv1.CreateVolumeRequest) (*blixardv1.CreateVolumeResponse, error) {
	c := &blixardv1.CreateVolumeCommand{Id: newID("vol-"), Name: req.GetName(), SizeBytes: req.GetSizeBytes(), Labels: req.GetLabels()}
	if req.GetProject() != state.DefaultProject {
		c.Project = req.GetProject()
	}
	if c.SizeBytes == 0 {
		c.SizeBytes = defaultVolumeBytes
	}
	if req.GetNode() != "" {
		n := s.cfg.Replica.View().Node(req.GetNode())
		if n == nil {
			return nil, problem.New(problem.NotFound, "node.not_found", "there is no node %q", req.GetNode()).
				WithHint("`blixard node list` shows the nodes").WithField("node")
		}
		c.NodeId = n.GetId()
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_CreateVolume{CreateVolume: c}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.CreateVolumeResponse{Volume: r.Volume}, nil
}

func (s volumeService) ListVolumes(ctx context.Context, req *blixardv1.ListVolumesRequest) (*blixardv1.ListVolumesResponse, error) {
	view, _, err := s.readOrStale(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	return &blixardv1.ListVolumesResponse{Volumes: view.Volumes(), Index: view.Index()}, nil
}

// findVolume finds the volume of a request.
func (s *Server) findVolume(ctx context.Context, name string) (*blixardv1.Volume, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	v := view.Volume(name)
	if v == nil {
		return nil, problem.New(problem.NotFound, "volume.not_found", "there is no volume %q", name).WithHint("see `blixard volume list`")
	}
	return v, nil
}

// ownVolume finds the volume of a request, which its route found on this node.
func (s *Server) ownVolume(ctx context.Context, name string) (*blixardv1.Volume, Volumes, error) {
	v, err := s.findVolume(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case v.GetDeleting():
		return nil, nil, problem.New(problem.Conflict, "volume.deleting", "volume %q is being deleted", v.GetName()).WithHint("use another name")
	case v.GetNodeId() == "":
		return nil, nil, problem.New(problem.Conflict, "volume.unused", "volume %q was never used: there is nothing on it yet", v.GetName()).
			WithHint("attach it to a VM first")
	case v.GetNodeId() != s.cfg.NodeID:
		return nil, nil, elsewhere(v.GetNode())
	}
	kept, err := s.kept()
	if err != nil {
		return nil, nil, err
	}
	return v, kept.Volumes, nil
}

func (s volumeService) GetVolume(ctx context.Context, req *blixardv1.GetVolumeRequest) (*blixardv1.GetVolumeResponse, error) {
	v, err := s.findVolume(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	resp := &blixardv1.GetVolumeResponse{Volume: v}
	if v.GetNodeId() == s.cfg.NodeID {
		if kept, err := s.kept(); err == nil {
			if resp.UsedBytes, err = kept.Volumes.Used(v.GetId()); err != nil && !problem.Is(err, problem.NotFound) {
				return nil, err
			}
		}
	}
	return resp, nil
}

func (s volumeService) ResizeVolume(ctx context.Context, req *blixardv1.ResizeVolumeRequest) (*blixardv1.ResizeVolumeResponse, error) {
	v, own, err := s.ownVolume(ctx, req.GetName())
	if problem.HasCode(err, "volume.unused") {
		// Nothing has that size yet, so a number is all that changes.
		if v, err = s.findVolume(ctx, req.GetName()); err != nil {
			return nil, err
		}
		kept, err := s.kept()
		if err != nil {
			return nil, err
		}
		own = kept.Volumes
	} else if err != nil {
		return nil, err
	}
	if v.GetSizeBytes() < req.GetSizeBytes() {
		if err := s.volumeRoom(v, v.GetName(), req.GetSizeBytes()-v.GetSizeBytes()); err != nil {
			return nil, problem.From(err).WithField("size_bytes")
		}
	}
	if v, err = own.Resize(ctx, v, req.GetSizeBytes()); problem.Is(err, problem.Invalid) {
		return nil, problem.From(err).WithField("size_bytes")
	} else if err != nil {
		return nil, err
	}
	return &blixardv1.ResizeVolumeResponse{Volume: v}, nil
}

// volumeRoom refuses so much more of a name beside a volume, or of that volume itself, where
// the cluster would refuse it in the end: nothing is copied or changed for it.
func (s *Server) volumeRoom(v *blixardv1.Volume, name string, more uint64) error {
	view := s.cfg.Replica.View()
	if err := view.CheckVolumeQuota(v.GetProject(), more); err != nil {
		return err
	}
	return view.CheckVolume(name, view.Node(v.GetNodeId()), more)
}

// sizeAt gives the size of a volume at a snapshot, or its own when it has none of that name.
func sizeAt(v *blixardv1.Volume, snapshot string) uint64 {
	for _, s := range v.GetSnapshots() {
		if s.GetName() == snapshot {
			return s.GetSizeBytes()
		}
	}
	return v.GetSizeBytes()
}

func (s volumeService) DeleteVolume(ctx context.Context, req *blixardv1.DeleteVolumeRequest) (*blixardv1.DeleteVolumeResponse, error) {
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_DeleteVolume{
		DeleteVolume: &blixardv1.DeleteVolumeCommand{Name: req.GetName()},
	}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.DeleteVolumeResponse{Volume: r.Volume}, nil
}

func (s volumeService) SnapshotVolume(ctx context.Context, req *blixardv1.SnapshotVolumeRequest) (*blixardv1.SnapshotVolumeResponse, error) {
	v, own, err := s.ownVolume(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if v, err = own.Snapshot(ctx, v, req.GetSnapshot()); err != nil {
		return nil, err
	}
	return &blixardv1.SnapshotVolumeResponse{Volume: v}, nil
}

func (s volumeService) RestoreVolume(ctx context.Context, req *blixardv1.RestoreVolumeRequest) (*blixardv1.RestoreVolumeResponse, error) {
	v, own, err := s.ownVolume(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if size := sizeAt(v, req.GetSnapshot()); size > v.GetSizeBytes() {
		if err := s.volumeRoom(v, v.GetName(), size-v.GetSizeBytes()); err != nil {
			return nil, err
		}
	}
	if err := own.Restore(ctx, v, req.GetSnapshot()); err != nil {
		return nil, err
	}
	if v, err = s.findVolume(ctx, v.GetId()); err != nil {
		return nil, err
	}
	return &blixardv1.RestoreVolumeResponse{Volume: v}, nil
}

func (s volumeService) DeleteVolumeSnapshot(ctx context.Context, req *blixardv1.DeleteVolumeSnapshotRequest) (*blixardv1.DeleteVolumeSnapshotResponse, error) {
	v, own, err := s.ownVolume(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if v, err = own.DropSnapshot(ctx, v, req.GetSnapshot()); err != nil {
		return nil, err
	}
	return &blixardv1.DeleteVolumeSnapshotResponse{Volume: v}, nil
}

func (s volumeService) CloneVolume(ctx context.Context, req *blixardv1.CloneVolumeRequest) (*blixardv1.CloneVolumeResponse, error) {
	v, own, err := s.ownVolume(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	if s.cfg.Replica.View().Volume(req.GetNewName()) != nil {
		return nil, problem.New(problem.Conflict, "volume.name_taken", "there is a volume %q already", req.GetNewName()).WithHint("choose another name")
	}
	if err := s.volumeRoom(v, req.GetNewName(), sizeAt(v, req.GetSnapshot())); err != nil {
		return nil, err
	}
	clone, err := own.Clone(ctx, v, req.GetSnapshot(), &blixardv1.Volume{Id: newID("vol-"), Name: req.GetNewName()})
	if err != nil {
		return nil, err
	}
	return &blixardv1.CloneVolumeResponse{Volume: clone}, nil
}

func (s volumeService) MoveVolume(req *blixardv1.MoveVolumeRequest, stream blixardv1.VolumeService_MoveVolumeServer) error {
	ctx := stream.Context()
	v, own, err := s.ownVolume(ctx, req.GetName())
	if err != nil {
		return err
	}
	view := s.cfg.Replica.View()
	to := view.Node(req.GetNode())
	switch {
	case to == nil:
		return problem.New(problem.NotFound, "node.not_found", "there is no node %q", req.GetNode()).WithHint("`blixard node list` shows the nodes")
	case to.GetState() != blixardv1.NodeState_ready:
		return problem.New(problem.Unavailable, "node.not_ready", "node %q is %s", to.GetName(), to.GetState())
	case to.GetId() == v.GetNodeId():
		return stream.Send(&blixardv1.MoveVolumeResponse{Volume: v})
	}
	for _, id := range v.GetVmIds() {
		// The cluster would refuse it in the end: it is not copied for nothing.
		if placed := view.AllocationsOfVM(id); len(placed) > 0 {
			name := placed[0].GetVmName()
			return problem.New(problem.Conflict, "volume.in_use", "volume %q is in use by VM %q", v.GetName(), name).
				WithHint("stop that VM and take the volume from it: blixard volume detach %s %s", name, v.GetName())
		}
	}
	if err := view.CheckVolume(v.GetName(), to, v.GetSizeBytes()); err != nil {
		return err
	}
	v, err = own.Move(ctx, v, to.GetId(), func(done, total uint64) {
		_ = stream.Send(&blixardv1.MoveVolumeResponse{DoneBytes: done, TotalBytes: total})
	})
	if err != nil {
		return err
	}
	return stream.Send(&blixardv1.MoveVolumeResponse{Volume: v})
}

func (s volumeService) ReceiveVolume(stream blixardv1.VolumeService_ReceiveVolumeServer) error {
	kept, err := s.kept()
	if err != nil {
		return err
	}
	return kept.Volumes.Receive(stream)
}

// RegisterVolume takes in what the node that has a volume did with it.
func (s volumeService) RegisterVolume(ctx context.Context, req *blixardv1.RegisterVolumeRequest) (*blixardv1.RegisterVolumeResponse, error) {
	if err := s.speaksFor(ctx, req.GetNodeId()); err != nil {
		return nil, err
	}
	v := s.cfg.Replica.View().Volume(req.GetVolumeId())
	if v == nil && req.GetRemoved() {
		return &blixardv1.RegisterVolumeResponse{}, nil // said before
	}
	if v == nil {
		return nil, problem.New(problem.NotFound, "volume.not_found", "there is no volume %q", req.GetVolumeId())
	}
	if unplaced := req.GetSizeBytes() != 0 && v.GetNodeId() == ""; v.GetNodeId() != req.GetNodeId() && !unplaced {
		return nil, problem.New(problem.Fenced, "volume.other_node", "volume %q is on node %q, not here", v.GetName(), v.GetNode())
	}
	cmd := &blixardv1.Command{}
	switch c := req.GetChange().(type) {
	case *blixardv1.RegisterVolumeRequest_Removed:
		cmd.Change = &blixardv1.Command_ReleaseVolume{ReleaseVolume: &blixardv1.ReleaseVolumeCommand{VolumeId: v.GetId(), NodeId: req.GetNodeId()}}
	case *blixardv1.RegisterVolumeRequest_Snapshot:
		cmd.Change = &blixardv1.Command_SnapshotVolume{SnapshotVolume: &blixardv1.SnapshotVolumeCommand{VolumeId: v.GetId(), Snapshot: c.Snapshot}}
	case *blixardv1.RegisterVolumeRequest_DroppedSnapshot:
		cmd.Change = &blixardv1.Command_SnapshotVolume{SnapshotVolume: &blixardv1.SnapshotVolumeCommand{
			VolumeId: v.GetId(), Snapshot: &blixardv1.VolumeSnapshot{Name: c.DroppedSnapshot}, Drop: true,
		}}
	case *blixardv1.RegisterVolumeRequest_Moved:
		cmd.Change = &blixardv1.Command_MoveVolume{MoveVolume: &blixardv1.MoveVolumeCommand{
			VolumeId: v.GetId(), FromNodeId: req.GetNodeId(), ToNodeId: c.Moved.GetToNodeId(), Epoch: c.Moved.GetEpoch(),
		}}
	case *blixardv1.RegisterVolumeRequest_Clone:
		cmd.Change = &blixardv1.Command_CreateVolume{CreateVolume: &blixardv1.CreateVolumeCommand{
			Id: c.Clone.GetId(), Name: c.Clone.GetName(), SizeBytes: c.Clone.GetSizeBytes(), NodeId: req.GetNodeId(), Source: c.Clone.GetSource(), Made: true,
			Project: v.GetProject(),
		}}
	case *blixardv1.RegisterVolumeRequest_SizeBytes:
		cmd.Change = &blixardv1.Command_ResizeVolume{ResizeVolume: &blixardv1.ResizeVolumeCommand{Name: v.GetId(), SizeBytes: c.SizeBytes}}
	case *blixardv1.RegisterVolumeRequest_Made:
		cmd.Change = &blixardv1.Command_ResizeVolume{ResizeVolume: &blixardv1.ResizeVolumeCommand{Name: v.GetId(), Made: true}}
	default:
		return nil, problem.New(problem.Invalid, "volume.change", "the request tells of no change")
	}
	r, err := s.propose(ctx, req.GetIdempotencyKey(), cmd)
	if err != nil {
		return nil, err
	}
	return &blixardv1.RegisterVolumeResponse{Volume: r.Volume}, nil
}
