// Package failpoint lets a test end the process at a named point of the code, to
// show that what a crash leaves there is finished or undone after a restart.
//
// It also makes the disk of the log slow, or fail, for which there is no real means
// everywhere: other errors come from the real thing, a full disk or a stopped process.
//
// Without the build tag failpoints, Hit is an empty function that the compiler
// removes: the product has no such points.
package failpoint

// Points are the names of all points of a VM's life, in its order. A test that
// walks the list fails when one of them is never reached.
var Points = []string{
	"agent.record.before",
	"agent.record.after",
	"agent.prepare.before",
	"agent.prepare.after",
	"agent.start.before",
	"agent.start.after",
	"agent.adopt.after",
	"agent.ready",
	"agent.report.before",
	"agent.report.after",
	"agent.exit.kept",
	"agent.stop.before",
	"agent.stop.after",
	"agent.forget.after",
	"agent.remove.before",
	"agent.remove.half",
	"agent.remove.after",
}

// VolumePoints are those of package disk/volume, in the order of its steps.
var VolumePoints = []string{
	"volume.ensure.made",
	"volume.ensure.formatted",
	"volume.ensure.done",
	"volume.attach.done",
	"volume.grow.cut",
	"volume.resize.copied",
	"volume.resize.checked",
	"volume.resize.resized",
	"volume.resize.done",
	"volume.snapshot.copied",
	"volume.snapshot.done",
	"volume.restore.copied",
	"volume.restore.done",
	"volume.clone.copied",
	"volume.clone.renewed",
	"volume.clone.done",
	"volume.receive.opened",
	"volume.receive.synced",
	"volume.receive.marked",
	"volume.receive.verified",
	"volume.receive.done",
	"volume.delete_snapshot.done",
	"volume.delete.renamed",
	"volume.delete.done",
}

// Env names the variable that arms a point: "NAME", or "NAME:N" for its Nth
// visit, counted from 1. The process kills itself there with SIGKILL.
const Env = "FAILPOINT_BLIXARD"

// DiskEnv names the variable that names a file: while it says "POINT DURATION", each
// such step of the log takes that much longer, and with "POINT fail" it fails. The
// points are those of package wal.
const DiskEnv = "FAILPOINT_BLIXARD_DISK"
