package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/disk/image"
	"github.com/blixard/blixard/disk/volume"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/guest/bundle"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/replica"
	"github.com/blixard/blixard/server"
	"github.com/blixard/blixard/state"
	"github.com/blixard/blixard/vmnet"
)

// Names inside the data directory of what VMs are made of.
const (
	imagesDir   = "images"
	volumesDir  = "volumes"
	networksDir = "networks"
)

// capableTimeout bounds the look at what the kernel lets the node do.
const capableTimeout = 10 * time.Second

// guests is what the node keeps for its VMs.
type guests struct {
	images   *imageKeeper
	volumes  *volumeKeeper
	networks *networkKeeper
	// networkReason says why there are no networks of type nat.
	networkReason string
	store         *volume.Store
	spawner       driver.Spawner
}

// openGuests opens what the node keeps. The client must be there.
func (n *node) openGuests(ctx context.Context, b *bundle.Bundle) (*guests, error) {
	images, err := image.Open(image.Config{
		Dir: n.data.join(imagesDir), BudgetBytes: uint64(n.cfg.Image.Budget), Mirrors: n.cfg.Image.MirrorMap(),
		AllowPrivate: n.cfg.Image.PrivateAddresses == "allow", CAFiles: n.cfg.Image.CAFileList(), DockerConfig: n.cfg.Image.DockerConfig, Logger: n.log,
	})
	if err != nil {
		return nil, err
	}
	volumes, err := volume.Open(volume.Config{Dir: n.data.join(volumesDir), QuotaBytes: uint64(n.cfg.Volume.Quota), Logger: n.log})
	if err != nil {
		return nil, err
	}
	g := &guests{store: volumes, spawner: n.super}
	g.images = &imageKeeper{
		nodeID: n.data.id.NodeID, store: images, bundle: b, view: n.replica.View, client: n.client, nodes: n.nodes, log: n.log,
		applied: n.replica.WaitApplied,
	}
	g.volumes = newVolumeKeeper(n.data.id.NodeID, n.data.join(volumesDir), volumes, n.replica.View, n.client, n.nodes, n.log)
	g.networks = &networkKeeper{
		nodeID: n.data.id.NodeID, node: n.cfg.Node.Name, underlay: n.underlay(), view: n.replica.View, log: n.log, mtus: map[string][]int{},
	}
	return g, n.openFabric(ctx, g)
}

// openFabric opens networks of type nat, where the node may have them.
func (n *node) openFabric(ctx context.Context, g *guests) error {
	if n.cfg.Network.Mode == "user" {
		g.networkReason = "network.mode is user"
		return nil
	}
	looking, cancel := context.WithTimeout(ctx, capableTimeout)
	defer cancel()
	err := vmnet.Capable(looking)
	if err == nil {
		g.networks.fabric, err = vmnet.Open(vmnet.Config{
			StateDir: n.data.join(networksDir), Prefix: linkPrefix, Owner: n.data.id.NodeID, VXLANPort: int(n.cfg.Network.VXLANPort), Logger: n.log,
		})
	}
	if err == nil {
		return nil
	}
	if n.cfg.Network.Mode == "nat" {
		return err
	}
	g.networkReason = problem.From(err).Error()
	n.log.Warn("this node has no networks of type nat", "why", g.networkReason)
	return nil
}

// underlay is the address by which this node's networks are joined to the others'.
func (n *node) underlay() netip.Addr {
	if a, err := netip.ParseAddr(n.cfg.Network.Underlay); err == nil {
		return a
	}
	a, err := netip.ParseAddrPort(n.network.address)
	if err != nil || a.Addr().IsUnspecified() {
		return netip.Addr{}
	}
	return a.Addr().Unmap()
}

// networkTypes that the node can do.
func (g *guests) networkTypes() []string {
	types := []string{blixardv1.NetworkType_user.String()}
	if g.networks.fabric != nil {
		types = append([]string{blixardv1.NetworkType_nat.String()}, types...)
	}
	return types
}

// served is what the API reaches.
func (g *guests) served() server.Guests {
	s := server.Guests{Images: g.images, Volumes: g.volumes, Notices: g.notices}
	if g.networks.fabric != nil {
		s.Networks = g.networks
	}
	return s
}

// notices are what a person should know of networks, volumes and the confinement of
// VMs on this node.
func (g *guests) notices(ctx context.Context) []string {
	var out []string
	if g.networkReason != "" {
		out = append(out, "no networks of type nat: "+g.networkReason)
	}
	if g.networks.fabric != nil {
		problems := g.networks.fabric.Problems()
		for _, name := range slices.Sorted(maps.Keys(problems)) {
			out = append(out, problems[name].Error())
		}
	}
	strays, err := g.volumes.strays(ctx)
	if err != nil {
		out = append(out, "the volumes can't be listed: "+err.Error())
	}
	for _, id := range strays {
		out = append(out, fmt.Sprintf("the disk of volume %s is here, and the cluster has no such volume on this node: %s may be moved away", id, g.volumes.dir(id)))
	}
	return append(out, g.unconfined(ctx)...)
}

// unconfined tells what of the confinement of VMs this host does not have.
func (g *guests) unconfined(ctx context.Context) []string {
	var out []string
	for _, lane := range []driver.Lane{driver.LaneShared, driver.LaneExclusive} {
		list, err := g.spawner.List(ctx, lane)
		if err != nil {
			continue // the status tells of supervisors by itself
		}
		for _, p := range list {
			if text := p.GetMetadata()[driver.MetadataJail]; text != "" && !p.GetExited() && !slices.Contains(out, "VMs are confined, but for this: "+text) {
				out = append(out, "VMs are confined, but for this: "+text)
			}
		}
	}
	return out
}

// run keeps everything in step with the state until ctx ends.
func (g *guests) run(ctx context.Context, r *replica.Replica) {
	images, volumes, networks := make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { g.images.run(ctx, images) })
	wg.Go(func() { g.volumes.run(ctx, volumes) })
	if g.networks.fabric != nil {
		wg.Go(func() { g.networks.run(ctx, networks) })
	}
	sub := r.Subscribe(r.View().Index())
	defer func() { sub.Close() }()
	for ctx.Err() == nil {
		changes, _, err := sub.Next(ctx)
		if problem.HasCode(err, "watch.compacted") {
			sub.Close()
			sub = r.Subscribe(r.View().Index())
			wake(images, volumes, networks)
			continue
		}
		if err != nil {
			return
		}
		for _, c := range changes {
			switch c.Kind {
			case state.KindImage:
				wake(images)
			case state.KindVolume:
				wake(volumes)
			case state.KindNetwork, state.KindMember:
				wake(networks)
			case state.KindNode:
				wake(networks)
			case state.KindAllocation:
				if len(c.Allocation.GetInterfaces()) > 0 {
					wake(networks)
				}
			case state.KindVM:
				if len(c.VM.GetSpec().GetPorts()) > 0 {
					wake(networks)
				}
			}
		}
	}
}

// wake tells without waiting: one word waits for each who sleeps.
func wake(channels ...chan struct{}) {
	for _, c := range channels {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// close frees what is held; networks and VMs stay.
func (g *guests) close() error {
	err := g.store.Close()
	if g.networks.fabric != nil {
		err = errors.Join(err, g.networks.fabric.Close())
	}
	return err
}
