// Package state is the replicated state machine: the VMs, allocations, nodes,
// events and remembered answers that every replica agrees on.
//
// State moves only through [State.Apply], which takes log entries in order and
// gives a [Result] for each. Apply is pure: it has no clock, no randomness, no
// goroutine and no I/O, so the same entries give the same bytes on every
// replica. What a command needs beside the state (time, ids) travels in it.
//
// Readers take a [View], which never changes; [View.ChangesAfter] gives what
// happened since an index, for watches. A stream of [View.WriteSnapshot] is all
// that is needed to begin again with [Restore].
//
// It is not the place of decisions: the scheduler chooses nodes, and Apply only
// refuses what would break a promise (a name or capacity given out twice, an
// epoch that shrinks, a move that is not in the table of moves.go). It knows
// nothing of Raft, disks or sockets.
//
// Objects that leave this package are shared and must not be changed: clone them
// first. Apply changes no object in place; it replaces it.
package state
