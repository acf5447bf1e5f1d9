// Package replica is this node's participant in Raft: it proposes changes,
// answers when they are durable and applied, and tells from which index a read
// is linearizable.
//
// # The way of a change
//
// [Replica.Propose] encodes the command in its caller's goroutine and puts it in
// a bounded queue. The loop takes all that waits there and hands it to Raft as
// one message. Raft's Ready gives a batch to append, which the appender joins
// with every other batch that waits, writes as one frame and makes durable with
// one fsync. Only then may Raft count it as committed and give it to the applier,
// which applies all committed entries as one transaction of package state and
// answers the proposers.
//
// # Linearizable reads
//
// [Replica.ReadIndex], then [Replica.WaitApplied] for its index, then
// [Replica.View]; [Replica.Read] does the three. All reads that wait share one
// quorum round, which began after each of them.
//
// # Order of duties
//
// The core (core.go) is a plain struct driven by calls; it has no goroutine, no
// clock and no disk, and a simulator can drive it. run.go adds four goroutines:
// the loop that owns the core, the appender that owns the log, the applier that
// owns the state, and the one that writes snapshots. [Replica.Close] waits for all
// of them.
//
// A disk that is full makes the replica refuse changes until there is room
// again, by itself; the changes that were under way stay under way. A write or
// fsync that fails in another way is never tried again: the replica stops, and
// [Replica.Done] and [Replica.Err] tell.
//
// It is not a place for sockets (peer carries messages), for the format on disk
// (wal), or for what a command means (state).
package replica
