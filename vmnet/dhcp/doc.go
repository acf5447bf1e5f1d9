// Package dhcp answers guests that ask for their address: by DHCP for IPv4, by
// router advertisements and DHCPv6 for IPv6. All that it gives is leased before; it
// chooses nothing and keeps nothing.
//
// What a packet is answered with is a pure function of the packet and the leases
// ([Leases.Reply4], [Leases.Reply6], [Leases.Advertisement]); a [Server] is the
// sockets round it, on one bridge.
//
// It is not a relay and gives no address to a NIC that has no lease.
package dhcp
