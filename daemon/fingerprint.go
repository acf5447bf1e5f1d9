package daemon

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/daemon/config"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
)

// fingerprint is what the node tells of itself: what VMs may use, and what runs
// them.
func fingerprint(cfg config.Config, info driver.Info, version string, kernels, images []string) (*blixardv1.NodeFingerprint, error) {
	capacity, err := capacityOf(cfg)
	if err != nil {
		return nil, err
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("node: %w", err)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("node: uname: %w", err)
	}
	return &blixardv1.NodeFingerprint{
		Capacity: capacity, Driver: info.Name, DriverVersion: info.Version,
		Accelerator: info.Accelerator, AcceleratorReason: info.AcceleratorReason,
		BlixardVersion: version, KernelRelease: string(uts.Release[:max(0, bytes.IndexByte(uts.Release[:], 0))]),
		BootId: strings.TrimSpace(string(bootID)), Kernels: kernels, Images: images, FailureDomain: cfg.Node.FailureDomain,
		Labels: cfg.Node.LabelMap(), Arch: runtime.GOARCH,
		RefusesTasks: cfg.Tasks.Accept == "off", TasksMax: cfg.Tasks.Max,
	}, nil
}

// capacityOf is what the host has, less what is reserved for it.
func capacityOf(cfg config.Config) (*blixardv1.Resources, error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return nil, fmt.Errorf("node: sysinfo: %w", err)
	}
	memory := uint64(si.Totalram) * uint64(si.Unit)
	reserved := uint64(cfg.Node.ReservedMemory)
	if reserved >= memory {
		return nil, problem.New(problem.Invalid, "config.reserved_memory", "node.reserved_memory keeps %d MiB from VMs, and the host has only %d MiB",
			reserved>>20, memory>>20).WithHint("reserve less")
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(cfg.DataDir, &fs); err != nil {
		return nil, fmt.Errorf("node: size of the disk of %s: %w", cfg.DataDir, err)
	}
	cpus := uint32(runtime.NumCPU())
	if cfg.Node.ReservedCPUs >= cpus {
		return nil, problem.New(problem.Invalid, "config.reserved_cpus", "node.reserved_cpus keeps %d processors from VMs, and the host has only %d",
			cfg.Node.ReservedCPUs, cpus).WithHint("reserve less")
	}
	return &blixardv1.Resources{
		Vcpus:     cpus - cfg.Node.ReservedCPUs,
		MemoryMib: (memory - reserved) >> 20,
		DiskBytes: fs.Blocks * uint64(fs.Bsize),
	}, nil
}

// bootsPerCPU of VMs at once: one that waits for its disk leaves its processor to another,
// and more only make each of them later, up to where all count as hung.
const bootsPerCPU = 2

// parallelBoots gives how many VMs boot at once on this host.
func parallelBoots(configured uint32) int {
	if configured > 0 {
		return int(configured)
	}
	return bootsPerCPU * runtime.NumCPU()
}
