package qemu

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// slackMiB of a jail's memory above what a VM needs: pages of its disks' files
	// count, too, and are taken back when they have to be.
	slackMiB = 64
	// slackShare of the guest's memory is for the host's page tables of it, which
	// take a 512th each for guest and host.
	slackShare = 64
	// threadsOwn of QEMU beside one for each processor: its pool for I/O has at most
	// 64, and some are always there.
	threadsOwn = 128
	// percentOwn of a processor is for QEMU's own threads.
	percentOwn = 100
	// resolvConf is read by the user-mode network to forward the guest's DNS.
	resolvConf = "/etc/resolv.conf"
)

// confine fills in what a jail leaves out.
func confine(cfg driver.Config, p *probed) *blixardv1.Jail {
	if cfg.Jail == nil {
		return nil
	}
	j := proto.CloneOf(cfg.Jail)
	if j.MemoryBytes == 0 {
		j.MemoryBytes = uint64(cfg.MemoryMiB+cfg.MemoryMiB/slackShare+p.info.OverheadMiB+slackMiB) << 20
	}
	if j.PidsMax == 0 {
		j.PidsMax = cfg.VCPUs + threadsOwn
	}
	if j.CpuQuotaPercent == 0 {
		j.CpuQuotaPercent = cfg.VCPUs*100 + percentOwn
	}
	j.ReadPaths = append(j.ReadPaths, p.dataPaths...)
	if p.info.Accelerator == driver.AcceleratorKVM {
		j.ReadPaths = append(j.ReadPaths, kvmDevice)
	}
	if slices.ContainsFunc(cfg.NICs, func(n driver.NIC) bool { return n.User != nil }) {
		j.HostNetwork = true
		if !missing(resolvConf) {
			j.ReadPaths = append(j.ReadPaths, resolvConf)
		}
	}
	return j
}

// checkJail refuses a jail that the guest can't live in.
func checkJail(cfg driver.Config) error {
	if m := cfg.Jail.GetMemoryBytes(); m != 0 && m <= uint64(cfg.MemoryMiB)<<20 {
		return invalid("driver.jail", "the VMM may use %d bytes, which is not more than the guest's memory of %d MiB", m, cfg.MemoryMiB)
	}
	return nil
}

// dataPaths finds what QEMU reads beside its libraries: firmware, and its own
// modules, one of which is the emulator.
func dataPaths(ctx context.Context, program string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	odd := problem.New(problem.Unavailable, "driver.qemu_odd", "%s does not tell where its firmware is", program).WithHint(installHint)
	out, code, err := runBounded(ctx, command{argv: []string{program, "-L", "help"}})
	if err == nil && code != 0 {
		err = fmt.Errorf("exit code %d%s", code, quote(out))
	}
	if err != nil {
		return nil, odd.WithCause(err)
	}
	var paths []string
	for line := range strings.Lines(out) {
		if p := filepath.Clean(strings.TrimSpace(line)); filepath.IsAbs(p) {
			paths = append(paths, p)
		}
	}
	if len(paths) == 0 {
		return nil, odd.WithCause(errors.New("no path in its answer"))
	}
	root := filepath.Dir(filepath.Dir(program))
	for _, pattern := range []string{"lib/*/qemu/*.so", "lib/qemu/*.so", "lib64/qemu/*.so"} {
		modules, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return nil, odd.WithCause(err)
		}
		for _, m := range modules {
			paths = append(paths, filepath.Dir(m))
		}
	}
	slices.Sort(paths)
	return slices.DeleteFunc(slices.Compact(paths), missing), nil
}

// missing tells whether there is nothing at a path, or all.
func missing(path string) bool {
	found, err := filepath.EvalSymlinks(path)
	return err != nil || found == "/"
}
