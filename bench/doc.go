// Command bench measures blixard beside what people would use in its place, in
// one run on one disk.
//
//	bench changes [-clients 1,64,256] [-rounds N] [-seconds N] [-dir D] [-program P]
//
// changes: acknowledged changes a second of a single-node blixard (VMService
// LabelVMs and LabelVM) and of a single-node etcd (Put), 256 bytes each, every
// client with one change under way at a time. Both run as processes of their own
// with their defaults on the same disk, blixard as the whole daemon with its
// authentication, validation and agent, and are spoken to over unix sockets;
// the load generator is the parent. Rounds alternate between the two, and the
// medians are compared.
//
// BENCH_PROFILE=DIR leaves CPU profiles of all its processes there.
//
// It is a module of its own, so that etcd's server is no dependency of blixard.
package main
