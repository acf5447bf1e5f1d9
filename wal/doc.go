// Package wal keeps a replica's log, hard state and snapshots on disk, and
// proves on open that they are what was written.
//
// # What it promises
//
//   - When [Log.Sync] has returned nil, everything appended before is on the
//     disk: written and fsynced.
//   - [Open] gives back exactly what was synced, and perhaps the batch that was
//     being written when the machine stopped. A torn end is cut off.
//   - Any other damage (a flipped bit, a lost sector, a lost file) makes Open fail
//     with a problem that names file, offset and the way back. It never gives a
//     log with a hole: a replica with one could vote itself into losing
//     acknowledged changes.
//   - A full disk is no damage: Sync says "storage.full", keeps the batch, and can
//     be called again. Any other failed write or fsync is final.
//
// # Files
//
//	identity                   format number, cluster and node of the directory
//	lock                       flock of the process that uses it, and its pid
//	log/SEQ.log                segments of the log, preallocated, numbered from 1
//	log/spare.tmp              the next segment: the reserve of disk space
//	snap/INDEX.snap            the two newest snapshots
//
// A segment begins with a header page. Then come frames: one Sync is one frame,
// so a frame is the unit that is torn or whole. Nothing is written behind a frame
// before it is synced. So only the last frame may be torn, and a bad frame with a
// good one behind it is damage. A last frame that is bad is torn only if it lacks
// a whole sector, as a write that was cut short does; otherwise it was changed
// after it had been synced, and that is damage too. A segment that is full ends
// in a seal, which tells that another one follows.
//
// All checksums of a segment begin from its random nonce, so no content of an
// entry can pass for a frame.
//
// # Why not etcd's wal
//
// Its checksum covers the data of a record but neither its type nor its length, a
// damaged length at the end reads as a torn write and is cut silently, and when
// its preallocation meets a full disk once it cannot go on without a restart.
// Each breaks a promise above.
package wal
