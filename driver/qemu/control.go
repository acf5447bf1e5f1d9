package qemu

import (
	"context"
	"errors"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
)

// sectorBytes is the unit of a disk's size.
const sectorBytes = 512

// Pause implements driver.VM.
func (v *vm) Pause(ctx context.Context) error { return v.execute(ctx, "stop", nil, nil) }

// Resume implements driver.VM.
func (v *vm) Resume(ctx context.Context) error { return v.execute(ctx, "cont", nil, nil) }

// AttachDrive implements driver.VM: a microvm's devices are on a bus that nothing
// can be plugged into.
func (v *vm) AttachDrive(ctx context.Context, _ driver.Drive) error { return v.noHotplug(ctx) }

// DetachDrive implements driver.VM.
func (v *vm) DetachDrive(ctx context.Context, _ int) error { return v.noHotplug(ctx) }

func (v *vm) noHotplug(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	select {
	case <-v.ended:
		return v.gone()
	default:
	}
	return problem.New(problem.Unavailable, "driver.no_hotplug", "a microvm of QEMU takes no disk while it runs, and gives none back").
		WithHint("restart the VM")
}

// blockNode is an element of QEMU's answer to query-named-block-nodes.
type blockNode struct {
	NodeName string `json:"node-name"`
	ReadOnly bool   `json:"ro"`
	Image    struct {
		VirtualSize uint64 `json:"virtual-size"`
	} `json:"image"`
}

// ResizeDrive implements driver.VM.
func (v *vm) ResizeDrive(ctx context.Context, index int, bytes uint64) error {
	if bytes == 0 || bytes%sectorBytes != 0 {
		return invalid("driver.size", "%d bytes is not a multiple of %d", bytes, sectorBytes)
	}
	if bytes > 1<<62 {
		return invalid("driver.size", "%d bytes is more than a disk can have", bytes)
	}
	unknown := invalid("driver.drive", "the VM has no disk %d", index)
	if index < 0 || v.drives >= 0 && index >= v.drives {
		return unknown
	}
	var nodes []blockNode
	if err := v.execute(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &nodes); err != nil {
		return err
	}
	for _, n := range nodes {
		if n.NodeName != driveNode(index) {
			continue
		}
		switch has := n.Image.VirtualSize; {
		case n.ReadOnly:
			return invalid("driver.drive", "disk %d can't be written", index)
		case bytes < has:
			return invalid("driver.shrink", "disk %d has %d bytes, it can't be made smaller (%d)", index, has, bytes)
		case bytes == has:
			return nil
		}
		return v.execute(ctx, "block_resize", map[string]any{"node-name": n.NodeName, "size": bytes}, nil)
	}
	return unknown
}

// blockStats is an element of QEMU's answer to query-blockstats.
type blockStats struct {
	NodeName string `json:"node-name"`
	Stats    struct {
		ReadBytes    uint64 `json:"rd_bytes"`
		WrittenBytes uint64 `json:"wr_bytes"`
		Reads        uint64 `json:"rd_operations"`
		Writes       uint64 `json:"wr_operations"`
		Flushes      uint64 `json:"flush_operations"`
	} `json:"stats"`
}

// Statistics implements driver.VM.
func (v *vm) Statistics(ctx context.Context) (driver.Statistics, error) {
	var all []blockStats
	if err := v.execute(ctx, "query-blockstats", nil, &all); err != nil {
		return driver.Statistics{}, err
	}
	s, err := statistics(all)
	if err == nil && v.drives >= 0 && len(s.Drives) != v.drives {
		err = problem.New(problem.Internal, "driver.qmp", "QEMU told of %d disks of %d", len(s.Drives), v.drives)
	}
	if err != nil {
		return driver.Statistics{}, err
	}
	return s, nil
}

// statistics puts QEMU's answer in the order of the disks.
func statistics(all []blockStats) (driver.Statistics, error) {
	byNode := make(map[string]blockStats, len(all))
	for _, b := range all {
		byNode[b.NodeName] = b
	}
	var s driver.Statistics
	for i := range all {
		b, found := byNode[driveNode(i)]
		if !found {
			break
		}
		s.Drives = append(s.Drives, driver.DriveStatistics{
			ReadBytes: b.Stats.ReadBytes, WrittenBytes: b.Stats.WrittenBytes,
			Reads: b.Stats.Reads, Writes: b.Stats.Writes, Flushes: b.Stats.Flushes,
		})
	}
	if len(byNode) != len(all) {
		return driver.Statistics{}, problem.New(problem.Internal, "driver.qmp", "QEMU answered query-blockstats").
			WithCause(errors.New("two disks of one name"))
	}
	return s, nil
}
