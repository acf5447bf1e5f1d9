package qemu

import (
	"strconv"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
)

// Descriptors of the sockets in QEMU, as the Spawner hands them over.
const (
	agentFD = 3
	qmpFD   = 4
	tapsFD  = 5
)

// descriptors are what QEMU is given opened, in the order of a SpawnRequest. It
// opens no file of a VM by its name.
type descriptors struct {
	taps  []string
	files []*blixardv1.SpawnFile
}

func describe(cfg driver.Config) descriptors {
	var d descriptors
	for _, n := range cfg.NICs {
		if n.User == nil {
			d.taps = append(d.taps, n.Tap)
		}
	}
	d.files = append(d.files, &blixardv1.SpawnFile{Path: cfg.Kernel, ReadOnly: true})
	if cfg.Initramfs != "" {
		d.files = append(d.files, &blixardv1.SpawnFile{Path: cfg.Initramfs, ReadOnly: true})
	}
	for _, disk := range cfg.Drives {
		d.files = append(d.files, &blixardv1.SpawnFile{Path: disk.Path, ReadOnly: disk.ReadOnly})
	}
	return d
}

// file gives the descriptor of a file by its place.
func (d descriptors) file(i int) int { return tapsFD + len(d.taps) + i }

// console is the descriptor of the terminal behind the files.
func (d descriptors) console() int { return d.file(len(d.files)) }

// fdPath names what QEMU can only open by a name: it reads kernel and
// initramfs with the C library. The name is that of the descriptor.
func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// fdSet hands a descriptor to QEMU's own "open" and gives the name it has there.
func fdSet(fd int) (args []string, name string) {
	n := strconv.Itoa(fd)
	return []string{"-add-fd", "fd=" + n + ",set=" + n}, "/dev/fdset/" + n
}
