// Package peer carries Raft messages and snapshots between the replicas of one
// cluster.
//
// Each peer has a bounded queue and a stream of its own, so one that is stuck
// never slows the others. What does not fit into a queue is dropped, the newest
// append first: Raft repeats what matters. Heartbeats, votes and answers go before
// appends. Snapshots have streams of their own.
//
// The decisions (queue.go, check.go) are plain values without goroutines, clock or
// sockets; a simulator can use them. transport.go and what it starts add these,
// and [Transport.Close] waits for all of it.
//
// It is not a place for the meaning of messages (replica), nor for who may connect
// (auth): it is given connections that are authenticated already, and holds what
// they say against what it was told of the members.
package peer
