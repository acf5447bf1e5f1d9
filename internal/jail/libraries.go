package jail

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// listTimeout bounds the listing of libraries, which takes some 20 ms.
	listTimeout = 10 * time.Second
	// listBytesMax of a listing: QEMU's has 5 KiB.
	listBytesMax = 256 << 10
	// interpreterBytesMax is the kernel's PATH_MAX.
	interpreterBytesMax = 4096
	// cachesMax programs are remembered.
	cachesMax = 16
	// loaderCache tells the loader where libraries are.
	loaderCache = "/etc/ld.so.cache"
)

// Libraries finds the shared libraries of programs and remembers them. It is safe
// for concurrent use. The zero value is ready.
type Libraries struct {
	mu    sync.Mutex
	known map[program][]string
}

// program is a file of one content, as far as can be told without reading it.
type program struct {
	path        string
	device, ino uint64
	size        int64
	modified    time.Time
}

// Of gives the files that a program needs to start, itself left out: the loader
// and the libraries by the names that the loader opens. The loader itself lists
// them; the program is not run.
func (l *Libraries) Of(ctx context.Context, path string) ([]string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	key := program{path: path, size: st.Size(), modified: st.ModTime()}
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		key.device, key.ino = s.Dev, s.Ino
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if libs, ok := l.known[key]; ok {
		return libs, nil
	}
	libs, err := list(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("libraries of %s: %w", path, err)
	}
	if l.known == nil || len(l.known) >= cachesMax {
		l.known = map[program][]string{}
	}
	l.known[key] = libs
	return libs, nil
}

func list(ctx context.Context, path string) ([]string, error) {
	loader, err := interpreter(path)
	if err != nil || loader == "" {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, loader, "--list", path)
	cmd.Env = []string{"LC_ALL=C"}
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	libs, err := parseList(string(out))
	if err != nil {
		return nil, err
	}
	libs = append(libs, loader)
	if _, err := os.Stat(loaderCache); err == nil {
		libs = append(libs, loaderCache)
	}
	slices.Sort(libs)
	return slices.Compact(libs), nil
}

// interpreter gives the loader of a program, and "" for a static one.
func interpreter(path string) (string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		if p.Filesz > interpreterBytesMax {
			return "", errors.New("the name of the loader is too long")
		}
		b, err := io.ReadAll(p.Open())
		if err != nil {
			return "", err
		}
		name := strings.TrimRight(string(b), "\x00")
		if !filepath.IsAbs(name) {
			return "", fmt.Errorf("the loader %q is not an absolute path", name)
		}
		return filepath.Clean(name), nil
	}
	return "", nil
}

// parseList reads what a loader says to --list.
func parseList(out string) ([]string, error) {
	if len(out) > listBytesMax {
		return nil, fmt.Errorf("a list of %d bytes", len(out))
	}
	var libs []string
	for line := range strings.Lines(out) {
		fields := strings.Fields(line)
		if len(fields) >= 3 && fields[1] == "=>" {
			fields = fields[2:]
			if !filepath.IsAbs(fields[0]) {
				return nil, fmt.Errorf("a library is missing: %s", strings.TrimSpace(line))
			}
		}
		if len(fields) > 0 && filepath.IsAbs(fields[0]) {
			libs = append(libs, filepath.Clean(fields[0]))
		}
	}
	return libs, nil
}
