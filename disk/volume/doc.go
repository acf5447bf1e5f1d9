// Package volume keeps the files of volumes on one node: disks that outlive VMs,
// and their snapshots.
//
// Each volume has a directory of its own, named by its id:
//
//	<id>/disk.img            the disk, raw and sparse
//	<id>/snap-<id>.img       what was on it at a time
//	<id>/epoch               the newest epoch that used it (package disk)
//	<id>/in-<file>           a file that is on its way to this node
//	<id>/in-<file>.mark      how much of it is durable
//	<id>/<file>.new          an unfinished step; of no worth after a crash
//	.deleted-<id>            a volume that is gone, being removed
//
// A step makes its file beside the old one, has it checked and durable, and then
// renames it: a crash at any point leaves what was there before, or what shall be
// there. So there is nothing to repair at the start, only something to remove. That
// holds for a resize, too: a resize2fs that is killed may leave rubbish, and so it
// works on a copy, which costs nothing where the file system can share extents and
// else the reading and writing of the data, and its room.
//
// What is on a disk is the guest's and not trusted: nothing here mounts it, and the
// programs that work on it get the open file, no path, and cannot make it larger.
//
// It is not the truth about volumes: the cluster's state says which there are, how
// large, and where; who calls this package acts on that. It knows no VMs: a step that
// needs the disk at rest asks for the lock that QEMU holds on a disk it has open, as
// the last line of defence and not the first. It is no transport: [Store.Send] and
// [Store.Receive] are the two ends of one.
package volume
