package state

import (
	"strconv"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// claim is what only one VM of the cluster may have: an address of a network, or a
// published port.
//
// Invariant: the claims are exactly those of the VMs, see claimsOf.
type claim struct {
	key  string
	vmID string
}

func (c *claim) id() string { return c.key }

func addressKey(networkID, ipv4 string) string { return "address/" + networkID + "/" + ipv4 }

// PortKey names a published port: tcp/8080.
func PortKey(p *blixardv1.PublishedPort) string {
	protocol := p.GetProtocol()
	if protocol == blixardv1.Protocol_unspecified {
		protocol = blixardv1.Protocol_tcp
	}
	return protocol.String() + "/" + strconv.FormatUint(uint64(p.GetHostPort()), 10)
}

// claimsOf gives all claims of a VM.
func claimsOf(vm *blixardv1.VM) []*claim {
	var claims []*claim
	for _, i := range vm.GetInterfaces() {
		if i.GetIpv4() != "" {
			claims = append(claims, &claim{addressKey(i.GetNetworkId(), i.GetIpv4()), vm.GetId()})
		}
	}
	for _, p := range vm.GetSpec().GetPorts() {
		claims = append(claims, &claim{"port/" + PortKey(p), vm.GetId()})
	}
	return claims
}

func (b *batch) claimant(key string) string {
	if c := first[claim](b.db, tableClaim, indexID, key); c != nil {
		return c.vmID
	}
	return ""
}

// claimAll gives vm, a fresh copy, the addresses, ports and volumes of its spec, if the
// quota of its project allows it; old is its form before, nil for a new VM, whose
// addresses it keeps where the network is the same. Nothing is changed when it is
// refused.
func (b *batch) claimAll(vm, old *blixardv1.VM) *problem.Error {
	interfaces, networks, why := b.leaseAddresses(vm, old)
	if why != nil {
		return why
	}
	if why := b.portsFree(vm); why != nil {
		return why
	}
	volumes, why := b.volumesFree(vm)
	if why != nil {
		return why
	}
	if why := b.secretsKnown(vm.GetSpec()); why != nil {
		return why
	}
	vm.Interfaces = interfaces
	if why := b.quotaAllows(vm, old, 0); why != nil {
		return why
	}
	if old != nil {
		b.releaseClaims(old)
	}
	recount(b.db, vm, old)
	for _, n := range networks {
		b.putNetwork(n)
	}
	for _, c := range claimsOf(vm) {
		insert(b.db, tableClaim, c)
	}
	for _, v := range volumes {
		next := copyVolume(b.volume(v.GetId()))
		next.VmIds = append(withoutString(next.VmIds, vm.GetId()), vm.GetId())
		b.putVolume(next)
	}
	return nil
}

// releaseClaims gives back all that a VM has.
func (b *batch) releaseClaims(vm *blixardv1.VM) {
	for _, c := range claimsOf(vm) {
		if b.claimant(c.key) == vm.GetId() {
			remove(b.db, tableClaim, c)
		}
	}
	for _, a := range vm.GetSpec().GetVolumes() {
		if v := b.volume(a.GetVolume()); v != nil && containsString(v.GetVmIds(), vm.GetId()) {
			next := copyVolume(v)
			next.VmIds = withoutString(next.VmIds, vm.GetId())
			b.putVolume(next)
		}
	}
}

func (b *batch) portsFree(vm *blixardv1.VM) *problem.Error {
	seen := map[string]bool{}
	for i, p := range vm.GetSpec().GetPorts() {
		key := PortKey(p)
		if seen[key] {
			return problem.New(problem.Invalid, "port.twice", "port %s is published twice", key).WithHint("name each port once").WithField("spec.ports[%d]", i)
		}
		seen[key] = true
		if other := b.claimant("port/" + key); other != "" && other != vm.GetId() {
			return problem.New(problem.Conflict, "port.taken", "port %s is published by VM %q already", key, b.vm(other).GetName()).
				WithHint("publish another port of the nodes, such as -p %d:%d", p.GetHostPort()+1, p.GetGuestPort()).WithField("spec.ports[%d]", i)
		}
	}
	if len(seen) > 0 && len(vm.GetSpec().GetNetworks()) == 0 {
		return problem.New(problem.Invalid, "port.no_network", "the VM has ports to publish and no network").
			WithHint("give it a network, or leave the ports out").WithField("spec.ports")
	}
	return nil
}

func containsString(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// withoutString gives a copy of list without s.
func withoutString(list []string, s string) []string {
	var out []string
	for _, v := range list {
		if v != s {
			out = append(out, v)
		}
	}
	return out
}
