// Command bench measures blixard beside what people would use in its place, in
// one run on one disk.
//
//	bench changes [-clients 1,64,256] [-rounds N] [-seconds N] [-dir D] [-program P]
//	bench cluster [-clients 1,64,256] [-readers 64] [-to all|leader] [-rounds N] [-seconds N] [-dir D] [-program P]
//
// changes: acknowledged changes a second of a single-node blixard (VMService
// LabelVMs and LabelVM) and of a single-node etcd (Put), 256 bytes each, every
// client with one change under way at a time. Both run as processes of their own
// with their defaults on the same disk, blixard as the whole daemon with its
// authentication, validation and agent, and are spoken to over unix sockets;
// the load generator is the parent. Rounds alternate between the two, and the
// medians are compared.
//
// cluster: the same changes, and linearizable reads (GetVM, Get), of three nodes
// on loopback beside three etcds, with mTLS between client and member and between
// members on both sides. The connections of the clients go evenly to all members,
// or with -to leader to the one that leads, alike on both sides.
//
// BENCH_PROFILE=DIR leaves CPU profiles of all its processes there.
//
// It is a module of its own, so that etcd's server is no dependency of blixard.
package main
