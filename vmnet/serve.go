package vmnet

import (
	"errors"
	"net/netip"

	"github.com/blixard/blixard/internal/objectname"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/vmnet/dhcp"
	"github.com/blixard/blixard/vmnet/dns"
)

// service is what runs for one network: DHCP and DNS on its bridge.
type service struct {
	key  serviceKey
	dhcp *dhcp.Server
	dns  *dns.Server
}

// serviceKey is what a service can't be without being made anew: its sockets are
// bound to the bridge by number.
type serviceKey struct {
	bridge           string
	index            int
	subnet4, subnet6 netip.Prefix
	name             string
}

func (s *service) close() error {
	var errs []error
	if s.dhcp != nil {
		errs = append(errs, s.dhcp.Close())
	}
	if s.dns != nil {
		errs = append(errs, s.dns.Close())
	}
	return errors.Join(errs...)
}

// serveLocked makes each network have its service, with the names and leases of
// now.
func (f *Fabric) serveLocked(plan planned, problems map[string]error) error {
	var errs []error
	gateways := map[netip.Addr]bool{}
	wanted := map[string]netPlan{}
	for _, np := range plan.networks {
		wanted[np.id] = np
		gateways[np.gateway4], gateways[np.gateway6] = true, true
	}
	f.gateways.Store(&gateways)
	for id := range sortedKeys(f.services) {
		np, is := wanted[id]
		index, err := indexOf(np.bridge, nil)
		if !is || err != nil || f.services[id].key != np.key(index) {
			errs = append(errs, f.services[id].close())
			delete(f.services, id)
		}
	}
	for _, np := range plan.networks {
		if s := f.services[np.id]; s != nil {
			s.dhcp.SetLeases(np.leases())
			s.dns.SetZone(np.zone())
			continue
		}
		s, err := f.startService(np)
		if err != nil {
			err = problem.New(problem.Unavailable, "network.service_failed", "network %q: its DHCP or DNS can't start", np.name).WithCause(err).
				WithHint("see who listens on the ports 53, 67 and 547 with `ss -lnp`, and let it leave %s alone", np.bridge)
			problems[np.name] = errors.Join(problems[np.name], err)
			continue
		}
		f.services[np.id] = s
	}
	return errors.Join(errs...)
}

func (f *Fabric) startService(np netPlan) (*service, error) {
	index, err := indexOf(np.bridge, nil)
	if err != nil {
		return nil, err
	}
	s := &service{key: np.key(index)}
	if s.dhcp, err = dhcp.Listen(np.bridge, np.leases(), f.log); err != nil {
		return nil, err
	}
	var addresses []netip.Addr
	for _, ip := range []netip.Addr{np.gateway4, np.gateway6} {
		if ip.IsValid() {
			addresses = append(addresses, ip)
		}
	}
	s.dns, err = dns.Listen(dns.Config{Device: np.bridge, Addresses: addresses, Zone: np.zone(), Resolvers: f.resolvers, Logger: f.log})
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// stopLocked ends all services.
func (f *Fabric) stopLocked() error {
	var errs []error
	for id, s := range f.services {
		errs = append(errs, s.close())
		delete(f.services, id)
	}
	return errors.Join(errs...)
}

// ownGateway reports whether an address is one of our gateways.
func (f *Fabric) ownGateway(ip netip.Addr) bool {
	m := f.gateways.Load()
	return m != nil && (*m)[ip]
}

func (np netPlan) key(index int) serviceKey {
	return serviceKey{bridge: np.bridge, index: index, subnet4: np.subnet4, subnet6: np.subnet6, name: np.name}
}

// leases are those of the network's local NICs: each node answers its own guests.
func (np netPlan) leases() *dhcp.Leases {
	l := &dhcp.Leases{
		Subnet4: np.subnet4, Subnet6: np.subnet6, Gateway4: np.gateway4, Gateway6: np.gateway6,
		GatewayMAC: np.gatewayMAC, MTU: np.mtu, Domain: np.zone().Domain(), ByMAC: map[string]dhcp.Lease{},
	}
	for _, e := range np.local {
		l.ByMAC[e.MAC] = dhcp.Lease{IPv4: e.IPv4, IPv6: e.IPv6, Hostname: objectname.Own(e.VMName)}
	}
	return l
}

// zone holds the names of all the network's VMs, wherever they are.
func (np netPlan) zone() *dns.Zone {
	var subnets []netip.Prefix
	for _, s := range []netip.Prefix{np.subnet4, np.subnet6} {
		if s.IsValid() {
			subnets = append(subnets, s)
		}
	}
	hosts := []dns.Host{{Names: []string{"gateway"}, Addresses: valid(np.gateway4, np.gateway6)}}
	for _, l := range np.local {
		hosts = append(hosts, dns.Host{Names: l.hostNames(), Addresses: valid(l.IPv4, l.IPv6, linkLocal(l.MAC)), Local: true})
	}
	for _, e := range np.remote {
		hosts = append(hosts, dns.Host{Names: e.hostNames(), Addresses: valid(e.IPv4, e.IPv6)})
	}
	return dns.NewZone(np.name, subnets, hosts)
}

func (e Endpoint) hostNames() []string {
	return append([]string{objectname.Host(e.VMName)}, e.Aliases...)
}

// valid gives the addresses that are there.
func valid(all ...netip.Addr) []netip.Addr {
	var out []netip.Addr
	for _, ip := range all {
		if ip.IsValid() {
			out = append(out, ip)
		}
	}
	return out
}
