package bundle

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"

	"github.com/blixard/blixard/guest/kernel"
)

const (
	// modulesDir is where the modules lie in the initramfs, and modulesList the file that names them,
	// a path a line in the order in which init loads them.
	modulesDir  = "blixard/modules.d"
	modulesList = "blixard/modules"
	// moduleBytesMax bounds one module; the largest taken has 1 MiB.
	moduleBytesMax = 16 << 20
)

// initramfs gives an initramfs with blixard-guest as /init and the modules. It is uncompressed: it is
// small, unpacking it in an emulated guest takes longer than reading it, and the host's page cache
// holds one copy for all VMs.
func initramfs(guest []byte, modules []kernel.Module) ([]byte, error) {
	records := []cpio.Record{
		cpio.Directory("dev", 0o755),
		// The kernel opens it before init can mount anything: init's standard output.
		cpio.CharDev("dev/console", 0o600, 5, 1),
		cpio.Directory("proc", 0o755),
		cpio.Directory("sys", 0o755),
		cpio.StaticFile("init", string(guest), 0o755),
	}
	if len(modules) > 0 {
		records = append(records, cpio.Directory("blixard", 0o755), cpio.Directory(modulesDir, 0o755))
		var list strings.Builder
		for _, m := range modules {
			raw, err := readLimited(m.Path, moduleBytesMax)
			if err != nil {
				return nil, fmt.Errorf("module %s: %w", m.Name, err)
			}
			name := modulesDir + "/" + m.Name + ".ko"
			records = append(records, cpio.StaticFile(name, string(raw), 0o644))
			list.WriteString("/" + name + "\n")
		}
		records = append(records, cpio.StaticFile(modulesList, list.String(), 0o644))
	}
	var buf bytes.Buffer
	w := cpio.Newc.Writer(&buf)
	for i := range records {
		r := cpio.MakeReproducible(records[i])
		r.Ino = uint64(i) + 1 // no two records are links of one file
		if err := w.WriteRecord(r); err != nil {
			return nil, err
		}
	}
	if err := cpio.WriteTrailer(w); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// readLimited reads a whole file of at most limit bytes.
func readLimited(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return nil, fmt.Errorf("%s is not a regular file of at most %d bytes", path, limit)
	}
	return os.ReadFile(path)
}
