package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/internal/objectname"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
	"github.com/blixard/blixard/vmnet"
)

// Limits of keeping networks.
const (
	// applyDelay gathers changes that come together.
	applyDelay = 20 * time.Millisecond
	// applyEvery mends what somebody else took away, and tries again what failed.
	applyEvery = time.Minute
	// stopApplyTimeout bounds what is done when the daemon ends.
	stopApplyTimeout = 10 * time.Second
)

// linkPrefix begins the names of all network devices that are made.
const linkPrefix = "blx"

// The addresses of QEMU's user-mode network, which are the same in each VM.
var (
	userAddress = netip.MustParsePrefix("10.0.2.15/24")
	userRouter  = netip.MustParseAddr("10.0.2.2")
	userDNS     = netip.MustParseAddr("10.0.2.3")
)

// networkKeeper makes the networks of this node's VMs follow the state. It is safe
// for concurrent use.
type networkKeeper struct {
	nodeID, node string
	// fabric is nil where the node can't do networks of type nat.
	fabric *vmnet.Fabric
	// underlay of this node, the zero value for none.
	underlay netip.Addr
	view     func() *state.View
	log      *slog.Logger

	// applying is held while the kernel is changed.
	applying sync.Mutex

	mu sync.Mutex
	// mtus by allocation and NIC, as the taps were made.
	mtus map[string][]int
	told map[string]string
}

// Attach implements agent.Networks.
func (k *networkKeeper) Attach(ctx context.Context, a *blixardv1.Allocation, uid uint32) ([]driver.NIC, error) {
	if len(a.GetInterfaces()) == 0 {
		return nil, nil
	}
	view := k.view()
	var nics []driver.NIC
	var mtus []int
	applied := false
	for n, i := range a.GetInterfaces() {
		network := view.Network(i.GetNetworkId())
		if network == nil {
			return nil, problem.New(problem.NotFound, "network.not_found", "network %q is gone", i.GetNetwork())
		}
		if network.GetType() == blixardv1.NetworkType_user {
			nics, mtus = append(nics, driver.NIC{MAC: i.GetMac(), User: userNet(a, n)}), append(mtus, 0)
			continue
		}
		if k.fabric == nil {
			return nil, problem.New(problem.Unavailable, "network.no_nat", "this node has no networks of type nat").WithHint("`blixard node status` says why")
		}
		if !applied {
			if err := k.apply(ctx); err != nil {
				return nil, err
			}
			applied = true
		}
		name, mtu, err := k.fabric.Tap(ctx, a.GetId(), n, vmnet.TapOptions{UID: int(uid), GID: int(uid)})
		if err != nil {
			// What is wrong with the whole network says more than that the tap has no place.
			if why := k.fabric.Problems()[network.GetName()]; why != nil {
				err = why
			}
			return nil, err
		}
		nics, mtus = append(nics, driver.NIC{MAC: i.GetMac(), Tap: name, MTU: uint32(mtu)}), append(mtus, mtu)
	}
	if applied {
		for _, p := range a.GetSpec().GetPorts() {
			if err := k.fabric.Problems()[portName(p)]; err != nil {
				return nil, err
			}
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mtus[a.GetId()] = mtus
	return nics, nil
}

// portName is what the fabric calls a port that it has a problem with.
func portName(p *blixardv1.PublishedPort) string {
	return fmt.Sprintf("port %d/%s", p.GetHostPort(), p.GetProtocol())
}

// userNet is the user-mode network of a VM; its first one publishes the ports.
func userNet(a *blixardv1.Allocation, index int) *driver.UserNet {
	u := &driver.UserNet{}
	if index > 0 {
		return u
	}
	for _, p := range a.GetSpec().GetPorts() {
		u.Forwards = append(u.Forwards, driver.Forward{
			Protocol: p.GetProtocol().String(), HostAddress: netip.IPv4Unspecified(), HostPort: uint16(p.GetHostPort()), GuestPort: uint16(p.GetGuestPort()),
		})
	}
	return u
}

// Configure implements agent.Networks.
func (k *networkKeeper) Configure(a *blixardv1.Allocation, cfg *guest.BootConfig) error {
	view := k.view()
	k.mu.Lock()
	mtus := slices.Clone(k.mtus[a.GetId()])
	k.mu.Unlock()
	for n, i := range a.GetInterfaces() {
		network := view.Network(i.GetNetworkId())
		if network == nil {
			return problem.New(problem.NotFound, "network.not_found", "network %q is gone", i.GetNetwork())
		}
		nic := guest.Interface{MAC: i.GetMac()}
		if n < len(mtus) {
			nic.MTU = uint32(mtus[n])
		}
		if network.GetType() == blixardv1.NetworkType_user {
			nic.Addresses, nic.GatewayIPv4 = []string{userAddress.String()}, userRouter.String()
			cfg.DNS = append(cfg.DNS, userDNS.String())
		} else {
			configureNAT(network, i, &nic, cfg)
			cfg.Search = append(cfg.Search, searched(a.GetVmName(), network.GetName())...)
		}
		cfg.Interfaces = append(cfg.Interfaces, nic)
	}
	return nil
}

// configureNAT is Configure for a network of type nat, whose gateway answers for
// names, too.
func configureNAT(network *blixardv1.Network, i *blixardv1.Interface, nic *guest.Interface, cfg *guest.BootConfig) {
	internal := network.GetRules().GetInternal()
	for _, one := range []struct {
		subnet, address string
		gateway         *string
	}{{network.GetIpv4Subnet(), i.GetIpv4(), &nic.GatewayIPv4}, {network.GetIpv6Subnet(), i.GetIpv6(), &nic.GatewayIPv6}} {
		p, err := netip.ParsePrefix(one.subnet)
		a, err2 := netip.ParseAddr(one.address)
		if err != nil || err2 != nil {
			continue
		}
		nic.Addresses = append(nic.Addresses, netip.PrefixFrom(a, p.Bits()).String())
		if !internal {
			*one.gateway = state.Gateway(one.subnet).String()
		}
	}
	if gateway := state.Gateway(network.GetIpv4Subnet()); gateway.IsValid() {
		cfg.DNS = append(cfg.DNS, gateway.String())
	}
}

// domain that all VMs' names end in.
const domain = "blixard"

// searched are the domains in which a VM looks for a name without one: its project's comes
// before that of the whole network.
func searched(vm, network string) []string {
	whole := network + "." + domain
	if project := objectname.Project(vm); project != objectname.DefaultProject {
		return []string{project + "." + whole, whole}
	}
	return []string{whole}
}

// Detach implements agent.Networks.
func (k *networkKeeper) Detach(_ context.Context, allocID string) error {
	k.mu.Lock()
	delete(k.mtus, allocID)
	k.mu.Unlock()
	if k.fabric == nil {
		return nil
	}
	return k.fabric.Untap(allocID)
}

// underlayOf gives the address by which a node's networks are joined; the zero value
// when none is known.
func underlayOf(view *state.View, nodeID string) netip.Addr {
	if a, err := netip.ParseAddr(view.Node(nodeID).GetFingerprint().GetUnderlay()); err == nil {
		return a
	}
	a, err := netip.ParseAddrPort(view.Member(nodeID).GetAddress())
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap()
}

// present is whether an allocation may have a running VM.
func present(a *blixardv1.Allocation) bool {
	return a.GetStatus().GetState() != blixardv1.AllocationState_lost && a.GetStatus().GetState() != blixardv1.AllocationState_unspecified
}

// desired makes of the state what this node shall have.
func (k *networkKeeper) desired(view *state.View) vmnet.Desired {
	d := vmnet.Desired{Underlay: k.underlay, Node: k.node}
	byID := map[string]*vmnet.Network{}
	var own []string
	for _, a := range view.AllocationsOfNode(k.nodeID) {
		for _, i := range a.GetInterfaces() {
			n := view.Network(i.GetNetworkId())
			if n.GetType() == blixardv1.NetworkType_nat && byID[n.GetId()] == nil && present(a) {
				byID[n.GetId()] = &vmnet.Network{Spec: n}
				own = append(own, n.GetId())
			}
		}
	}
	for _, a := range view.Allocations() {
		if !present(a) || len(a.GetInterfaces()) == 0 {
			continue
		}
		for n, i := range a.GetInterfaces() {
			network := byID[i.GetNetworkId()]
			if network == nil {
				continue
			}
			e := endpoint(a, n, i)
			if a.GetNodeId() == k.nodeID {
				network.Local = append(network.Local, e)
			} else if e.Node = underlayOf(view, a.GetNodeId()); e.Node.IsValid() {
				network.Remote = append(network.Remote, e)
			}
		}
		d.Ports = append(d.Ports, k.ports(view, a)...)
	}
	slices.Sort(own)
	for _, id := range own {
		d.Networks = append(d.Networks, *byID[id])
	}
	return d
}

func endpoint(a *blixardv1.Allocation, index int, i *blixardv1.Interface) vmnet.Endpoint {
	e := vmnet.Endpoint{AllocationID: a.GetId(), VMName: a.GetVmName(), Index: index, MAC: i.GetMac()}
	if v4, err := netip.ParseAddr(i.GetIpv4()); err == nil {
		e.IPv4 = v4
	}
	if v6, err := netip.ParseAddr(i.GetIpv6()); err == nil {
		e.IPv6 = v6
	}
	return e
}

// ports that this node answers on for an allocation.
func (k *networkKeeper) ports(view *state.View, a *blixardv1.Allocation) []vmnet.Port {
	// The allocation's spec is what the VM became; ports take effect at once.
	spec := view.VM(a.GetVmId()).GetSpec()
	if len(spec.GetPorts()) == 0 {
		return nil
	}
	first := a.GetInterfaces()[0]
	local := a.GetNodeId() == k.nodeID
	if local && view.Network(first.GetNetworkId()).GetType() == blixardv1.NetworkType_user {
		return nil // its hypervisor listens by itself
	}
	var ports []vmnet.Port
	for _, p := range spec.GetPorts() {
		port := vmnet.Port{HostPort: uint16(p.GetHostPort()), Protocol: p.GetProtocol()}
		if local {
			e := endpoint(a, 0, first)
			port.GuestPort, port.IPv4, port.IPv6 = uint16(p.GetGuestPort()), e.IPv4, e.IPv6
		} else if port.Node = underlayOf(view, a.GetNodeId()); !port.Node.IsValid() || port.Node.IsLoopback() {
			continue
		}
		ports = append(ports, port)
	}
	return ports
}

// apply makes the kernel follow the newest state.
func (k *networkKeeper) apply(ctx context.Context) error {
	k.applying.Lock()
	defer k.applying.Unlock()
	err := k.fabric.Apply(ctx, k.desired(k.view()))
	k.tell(k.fabric.Problems())
	return err
}

// tell logs what is wrong with networks, once.
func (k *networkKeeper) tell(problems map[string]error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := map[string]string{}
	for name, err := range problems {
		now[name] = err.Error()
		if k.told[name] != now[name] {
			k.log.Warn("a network is not as it should be on this node", "network", name, "err", err)
		}
	}
	k.told = now
}

// run follows the state until ctx ends. What it made stays, so that VMs keep their
// networks while the daemon is restarted.
func (k *networkKeeper) run(ctx context.Context, changed <-chan struct{}) {
	tick := time.NewTicker(applyEvery)
	defer tick.Stop()
	// What was deleted just before the end goes as well.
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopApplyTimeout)
		defer cancel()
		if err := k.apply(last); err != nil {
			k.log.Warn("the networks are not as they should be at the end", "err", err)
		}
	}()
	for {
		if err := k.apply(ctx); err != nil && ctx.Err() == nil {
			k.log.Warn("the networks can't be made to follow the state", "err", err)
		}
		select {
		case <-changed:
			timer := time.NewTimer(applyDelay)
			select {
			case <-timer.C:
			case <-ctx.Done():
				timer.Stop()
				return
			}
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Check implements server.Networks.
func (k *networkKeeper) Check(ctx context.Context, mend bool) ([]string, error) {
	k.applying.Lock()
	defer k.applying.Unlock()
	look := k.fabric.Check
	if mend {
		look = k.fabric.Mend
	}
	drifts, err := look(ctx)
	var texts []string
	for _, d := range drifts {
		texts = append(texts, d.What)
	}
	return texts, err
}

// HostSubnets implements server.Networks.
func (k *networkKeeper) HostSubnets() ([]netip.Prefix, error) {
	return vmnet.HostSubnets(k.nodeID)
}
