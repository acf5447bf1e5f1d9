package server

import (
	"context"
	"crypto/rand"
	"net/netip"
	"slices"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// Networks is the node's part of the cluster's networks. Implementations are safe
// for concurrent use.
type Networks interface {
	// Check gives a sentence for each thing of the kernel that is not as it should be,
	// and puts them right when asked to.
	Check(ctx context.Context, mend bool) ([]string, error)
	// HostSubnets are what the host reaches by other ways than a default route.
	HostSubnets() ([]netip.Prefix, error)
}

// Networks that the cluster chooses by itself.
const (
	// DefaultNetwork is the network of VMs that name none.
	DefaultNetwork = "default"
	// NoNetwork is the word for none.
	NoNetwork = "none"
	// subnetTries bounds how often another subnet is tried after somebody else was
	// faster.
	subnetTries = 5
)

// subnetPool is what IPv4 subnets are chosen from, /16 by /16: 64 of them, far from
// what home and office networks use.
var subnetPool = netip.MustParsePrefix("10.64.0.0/10")

const subnetBits = 16

// networkService is NetworkService; see the .proto for its contract.
type networkService struct {
	blixardv1.UnimplementedNetworkServiceServer
	*Server
}

func (s networkService) CreateNetwork(ctx context.Context, req *blixardv1.CreateNetworkRequest) (*blixardv1.CreateNetworkResponse, error) {
	n, err := s.createNetwork(ctx, req)
	if err != nil {
		return nil, err
	}
	return &blixardv1.CreateNetworkResponse{Network: n}, nil
}

func (s *Server) createNetwork(ctx context.Context, req *blixardv1.CreateNetworkRequest) (*blixardv1.Network, error) {
	n := &blixardv1.Network{
		Id: newID("net-"), Name: req.GetName(), Type: req.GetType(), Ipv4Subnet: req.GetIpv4Subnet(), Ipv6Subnet: req.GetIpv6Subnet(),
		Mtu: req.GetMtu(), Rules: req.GetRules(), Labels: req.GetLabels(),
	}
	if n.Type == blixardv1.NetworkType_unspecified {
		n.Type = blixardv1.NetworkType_nat
	}
	if n.GetType() == blixardv1.NetworkType_nat && n.GetIpv6Subnet() == "" && !req.GetNoIpv6() {
		n.Ipv6Subnet = uniqueLocal().String()
	}
	choose := n.GetType() == blixardv1.NetworkType_nat && n.GetIpv4Subnet() == ""
	for try := 1; ; try++ {
		if choose {
			subnet, err := s.freeSubnet(s.cfg.Replica.View())
			if err != nil {
				return nil, err
			}
			n.Ipv4Subnet = subnet.String()
		} else if err := s.subnetFree(n); err != nil {
			return nil, err
		}
		r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_CreateNetwork{
			CreateNetwork: &blixardv1.CreateNetworkCommand{Network: n},
		}})
		if choose && try < subnetTries && problem.HasCode(err, "network.subnet_overlaps") {
			continue
		}
		return r.Network, err
	}
}

// uniqueLocal draws an IPv6 subnet (RFC 4193, 3.2): 40 random bits never meet.
func uniqueLocal() netip.Prefix {
	a := [16]byte{0: 0xfd}
	rand.Read(a[1:6]) // never fails
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// hostSubnets of the answering node; the others see for themselves when they first
// need the network.
func (s *Server) hostSubnets() ([]netip.Prefix, error) {
	kept, err := s.kept()
	if err != nil || kept.Networks == nil {
		return nil, nil //nolint:nilerr // a node without VMs has nothing to clash with
	}
	return kept.Networks.HostSubnets()
}

// freeSubnet chooses one that neither a network nor this host has.
func (s *Server) freeSubnet(view *state.View) (netip.Prefix, error) {
	taken, err := s.hostSubnets()
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, n := range view.Networks() {
		if p, err := netip.ParsePrefix(n.GetIpv4Subnet()); err == nil {
			taken = append(taken, p)
		}
	}
	first := subnetPool.Addr().As4()
	for k := range 1 << (subnetBits - subnetPool.Bits()) {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{first[0], first[1] + byte(k), 0, 0}), subnetBits)
		if !slices.ContainsFunc(taken, p.Overlaps) {
			return p, nil
		}
	}
	return netip.Prefix{}, problem.New(problem.NoCapacity, "network.no_subnet", "no subnet of %s is free", subnetPool).
		WithHint("name one with --subnet, or delete networks that are not used")
}

// subnetFree refuses a subnet that this host reaches by another way.
func (s *Server) subnetFree(n *blixardv1.Network) error {
	taken, err := s.hostSubnets()
	if err != nil {
		return err
	}
	for _, one := range []struct{ field, text string }{{"ipv4_subnet", n.GetIpv4Subnet()}, {"ipv6_subnet", n.GetIpv6Subnet()}} {
		p, err := netip.ParsePrefix(one.text)
		if err != nil {
			continue
		}
		for _, t := range taken {
			if p.Overlaps(t) {
				return problem.New(problem.Conflict, "network.subnet_overlaps", "subnet %s overlaps %s, which the host of node %s reaches by another way",
					p, t, s.nodeName(s.cfg.NodeID)).WithHint("choose another subnet, or leave it out").WithField("%s", one.field)
			}
		}
	}
	return nil
}

// defaultNetwork gives a VM that names no network the cluster's own, and makes that
// when it is not there yet.
func (s *Server) defaultNetwork(ctx context.Context, spec *blixardv1.VMSpec) error {
	if spec.GetNoNetwork() {
		if len(spec.GetNetworks()) > 0 {
			return problem.New(problem.Invalid, "network.none_and_some", "the VM has networks, and shall have none").WithHint("leave out one of both").WithField("networks")
		}
		return nil
	}
	if len(spec.GetNetworks()) > 0 {
		return nil
	}
	name := s.cfg.DefaultNetwork
	if name == NoNetwork || name == "" {
		spec.NoNetwork = true
		return nil
	}
	spec.Networks = []*blixardv1.NetworkAttachment{{Network: name}}
	view := s.cfg.Replica.View()
	if view.Network(name) != nil || name != DefaultNetwork {
		return nil
	}
	// What this node can do counts before the state knows of it.
	kind, known := blixardv1.NetworkType_user, false
	if guests, err := s.kept(); err == nil {
		known = true
		if guests.Networks != nil {
			kind = blixardv1.NetworkType_nat
		}
	}
	for _, n := range view.Nodes() {
		known = true
		if slices.Contains(n.GetFingerprint().GetNetworkTypes(), blixardv1.NetworkType_nat.String()) {
			kind = blixardv1.NetworkType_nat
		}
	}
	if !known {
		return problem.New(problem.Unavailable, "node.starting", "no node has told yet which networks it can have").WithHint("try again in a moment")
	}
	_, err := s.createNetwork(ctx, &blixardv1.CreateNetworkRequest{Name: name, Type: kind})
	if problem.HasCode(err, "network.name_taken") {
		return nil // somebody else was faster
	}
	return err
}

func (s networkService) ListNetworks(ctx context.Context, req *blixardv1.ListNetworksRequest) (*blixardv1.ListNetworksResponse, error) {
	view, _, err := s.readOrStale(ctx, req.GetStale())
	if err != nil {
		return nil, err
	}
	return &blixardv1.ListNetworksResponse{Networks: view.Networks(), Index: view.Index()}, nil
}

func (s networkService) GetNetwork(ctx context.Context, req *blixardv1.GetNetworkRequest) (*blixardv1.GetNetworkResponse, error) {
	view, err := s.read(ctx)
	if err != nil {
		return nil, err
	}
	n := view.Network(req.GetName())
	if n == nil {
		return nil, problem.New(problem.NotFound, "network.not_found", "there is no network %q", req.GetName()).WithHint("see `blixard network list`")
	}
	resp := &blixardv1.GetNetworkResponse{Network: n}
	for _, vm := range view.VMs("", 0) {
		for _, i := range vm.GetInterfaces() {
			if i.GetNetworkId() == n.GetId() {
				resp.Leases = append(resp.Leases, &blixardv1.AddressLease{
					NetworkId: n.GetId(), Ipv4: i.GetIpv4(), Ipv6: i.GetIpv6(), Mac: i.GetMac(), VmId: vm.GetId(), VmName: vm.GetName(),
				})
			}
		}
	}
	return resp, nil
}

func (s networkService) UpdateNetwork(ctx context.Context, req *blixardv1.UpdateNetworkRequest) (*blixardv1.UpdateNetworkResponse, error) {
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_UpdateNetwork{
		UpdateNetwork: &blixardv1.UpdateNetworkCommand{Name: req.GetName(), ExpectedIndex: req.GetExpectedIndex(), Rules: req.GetRules()},
	}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.UpdateNetworkResponse{Network: r.Network}, nil
}

func (s networkService) DeleteNetwork(ctx context.Context, req *blixardv1.DeleteNetworkRequest) (*blixardv1.DeleteNetworkResponse, error) {
	r, err := s.propose(ctx, req.GetIdempotencyKey(), &blixardv1.Command{Change: &blixardv1.Command_DeleteNetwork{
		DeleteNetwork: &blixardv1.DeleteNetworkCommand{Name: req.GetName()},
	}})
	if err != nil {
		return nil, err
	}
	return &blixardv1.DeleteNetworkResponse{Network: r.Network}, nil
}

func (s networkService) CheckNetwork(ctx context.Context, req *blixardv1.CheckNetworkRequest) (*blixardv1.CheckNetworkResponse, error) {
	kept, err := s.kept()
	if err != nil {
		return nil, err
	}
	if kept.Networks == nil {
		return nil, problem.New(problem.Unavailable, "network.no_nat", "this node has no networks of type nat").WithHint("`blixard node status` says why")
	}
	drifts, err := kept.Networks.Check(ctx, req.GetMend())
	if err != nil {
		return nil, err
	}
	return &blixardv1.CheckNetworkResponse{Drifts: drifts, Mended: req.GetMend() && len(drifts) > 0, Node: s.nodeName(s.cfg.NodeID)}, nil
}
