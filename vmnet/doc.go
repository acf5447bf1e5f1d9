// Package vmnet makes what becomes a NIC: on each node a bridge for every network
// of type nat, a tap for every NIC, the overlay that joins the bridges of the
// nodes, the rules that say what passes, the published ports, and the DHCP and DNS
// that guests ask.
//
// It is told what is wanted as a whole and makes the kernel so:
//
//  1. [Open] a Fabric.
//  2. [Fabric.Apply] the whole of what the node shall have, each time that it
//     changes. What is there already is left as it is, so that Apply costs no
//     packet; what is there no longer is removed.
//  3. [Fabric.Tap] before a VM starts. The rules of the NIC are in place before its
//     tap is.
//  4. [Fabric.Untap] after it ended.
//  5. [Fabric.Check] and [Fabric.Mend] compare with the kernel, in case somebody
//     else changed it.
//  6. [Fabric.Close] ends what runs in this process and leaves the kernel as it is:
//     VMs keep their network while the daemon is away. [Fabric.Destroy] removes
//     all.
//
// A plan is a pure function of what is wanted and what the host has; reading the
// kernel and changing it are at the edge. The package filter is changed in one
// transaction of nftables, so that no packet meets half of the rules, and its base
// chains stay where they are, so that none is lost.
//
// Every object carries its owner: interfaces in their alias, tables in their
// comment. What has another owner is never touched.
//
// It is not a store of networks or addresses (package state is), it chooses no
// address, and it does nothing for networks of type user, which need nothing of
// the kernel.
//
// What a network carries: IPv4 and IPv6, between its VMs, on whatever node they
// are, by unicast. Broadcast and multicast stay on the node. The gateway is the
// same on every node and each node answers for it, so a guest never depends on
// another node for its way out.
//
// Published ports are answered on every address of the node and on 127.0.0.1, not
// on ::1, which can't be sent on from. Where the host shows frames between the ports
// of bridges to the rules for IP (br_netfilter), a VM does not reach itself by its
// own published port. A connection that another node relays comes from that node's
// address. A change of rules is for new connections.
package vmnet
