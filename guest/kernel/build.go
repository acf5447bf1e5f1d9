package kernel

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/blixard/blixard/internal/debian"
	"github.com/blixard/blixard/internal/filelock"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// buildTimeout bounds the compilation: 4.5 minutes on two cores, so an hour on a slow or busy one.
	buildTimeout = time.Hour
	// objectsAbout is how many files a build compiles; it only serves the progress shown.
	objectsAbout = 1950
	// objectsPerReport is how many compiled files are between two lines of progress.
	objectsPerReport = 100
	// logBytesMax is how much of the compiler's output is kept for an error.
	logBytesMax = 64 << 10
	// recordBytesMax bounds the record beside a cached kernel.
	recordBytesMax = 1 << 20
)

// How often a second the clocks of the kernels tick (CONFIG_HZ).
const (
	OwnTickHz   = 100
	StockTickHz = 250
)

// Config says where kernels are kept and made.
type Config struct {
	// CacheDir is made if it is missing. It may be shared by processes and users of one group.
	CacheDir string
	// Progress, if not nil, is told in short sentences what goes on.
	Progress func(string)
	// Jobs is how many compilers run at once; zero means one per processor.
	Jobs int
}

func (c Config) progress(format string, args ...any) {
	if c.Progress != nil {
		c.Progress(fmt.Sprintf(format, args...))
	}
}

func (c Config) fetcher() *debian.Fetcher {
	return &debian.Fetcher{CacheDir: c.CacheDir, Progress: c.Progress}
}

// Own is a kernel of our own in the cache.
type Own struct {
	// Path of the stripped vmlinux.
	Path string
	// Version as uname -r shows it.
	Version string
	// Source is the version of the Debian source package.
	Source string
	// Digest names the inputs it was made of.
	Digest string
}

// record is written beside a built kernel.
type record struct {
	Inputs  inputs    `json:"inputs"`
	Version string    `json:"version"`
	SHA256  string    `json:"sha256"`
	Built   time.Time `json:"built"`
}

// Build gives blixard's own kernel, from the cache or compiled from Debian's source: 5 minutes on two
// cores, 133 MiB to download, 2 GiB of disk. Nothing is installed and no privileges are needed. It is
// safe for concurrent use: the second caller waits for the first and takes its result. It fails with
// code tools.missing and the line that installs them, with kernel.options_dropped when Kconfig did
// not keep an option, and with kernel.build_failed and the end of the compiler's output.
func Build(ctx context.Context, c Config) (Own, error) {
	source, err := c.fetcher().Resolve(ctx, sourcePackage)
	if err != nil {
		return Own{}, err
	}
	in, err := ownInputs(source)
	if err != nil {
		return Own{}, err
	}
	name, err := in.digest()
	if err != nil {
		return Own{}, err
	}
	dir := filepath.Join(c.CacheDir, "kernels", name)
	release, err := filelock.Acquire(ctx, dir+".lock")
	if err != nil {
		return Own{}, err
	}
	defer release()
	if own, err := readOwn(dir); err == nil {
		c.progress("kernel %s is in the cache", own.Version)
		return own, nil
	}
	if err := requireBuildTools(); err != nil {
		return Own{}, err
	}
	if err := c.compileInto(ctx, in, name, dir); err != nil {
		return Own{}, err
	}
	return readOwn(dir)
}

// Cached gives the newest kernel in the cache that this version of blixard would build, of whatever
// version of Debian's source. It fails with a problem of kind NotFound when there is none.
func Cached(c Config) (Own, error) {
	dirs, err := filepath.Glob(filepath.Join(c.CacheDir, "kernels", "*", "record.json"))
	if err != nil {
		return Own{}, err
	}
	var best Own
	var newest time.Time
	for _, path := range dirs {
		rec, err := readRecord(path)
		if err != nil {
			continue // half deleted or damaged: as good as absent
		}
		mine, err := ownInputs(rec.Inputs.Source)
		if err != nil {
			return Own{}, err
		}
		want, err := mine.digest()
		if err != nil {
			return Own{}, err
		}
		if own, err := readOwn(filepath.Dir(path)); err == nil && own.Digest == want && rec.Built.After(newest) {
			best, newest = own, rec.Built
		}
	}
	if best.Path == "" {
		return Own{}, problem.New(problem.NotFound, "kernel.not_built", "blixard's own kernel was not built yet").
			WithHint("make kernel builds it (about 5 minutes on two cores); Debian's stock kernel serves until then")
	}
	return best, nil
}

func readRecord(path string) (record, error) {
	f, err := os.Open(path)
	if err != nil {
		return record{}, err
	}
	defer f.Close()
	var rec record
	return rec, json.NewDecoder(io.LimitReader(f, recordBytesMax)).Decode(&rec)
}

func readOwn(dir string) (Own, error) {
	rec, err := readRecord(filepath.Join(dir, "record.json"))
	if err != nil {
		return Own{}, err
	}
	own := Own{Path: filepath.Join(dir, "vmlinux"), Version: rec.Version, Source: rec.Inputs.Source.Version, Digest: filepath.Base(dir)}
	sum, _, err := DigestFile(own.Path)
	if err != nil {
		return Own{}, err
	}
	if sum != rec.SHA256 {
		return Own{}, fmt.Errorf("%s is damaged", own.Path)
	}
	return own, nil
}

// requireBuildTools checks for everything that compiling a kernel needs.
func requireBuildTools() error {
	err := debian.RequireTools("make", "gcc", "ld", "objcopy", "flex", "bison", "bc", "perl", "tar", "xz", "apt-get", "dpkg-deb")
	if err != nil {
		return err
	}
	// objtool, part of every x86 build, reads the kernel's objects with libelf.
	probe := exec.Command("gcc", "-E", "-include", "gelf.h", "-x", "c", "-o", os.DevNull, os.DevNull)
	if probe.Run() != nil {
		return debian.Missing([]string{"gelf.h"}, []string{"libelf-dev"})
	}
	return nil
}

// compileInto compiles the kernel of in and puts it, complete, at dir.
func (c Config) compileInto(ctx context.Context, in inputs, name, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, buildTimeout)
	defer cancel()
	started := time.Now()
	src, err := c.unpackSource(ctx, in, name)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(dir), ".build-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	objects, done := filepath.Join(work, "objects"), filepath.Join(work, "done")
	for _, d := range []string{objects, done} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	if err := c.configure(ctx, src, objects); err != nil {
		return err
	}
	if err := c.make(ctx, src, objects, "vmlinux"); err != nil {
		return err
	}
	if err := stripKernel(ctx, filepath.Join(objects, "vmlinux"), filepath.Join(done, "vmlinux")); err != nil {
		return err
	}
	if err := writeRecord(in, objects, done); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil { // a damaged one of before
		return err
	}
	if err := os.Rename(done, dir); err != nil {
		return err
	}
	c.progress("kernel built in %s", time.Since(started).Round(time.Second))
	return os.RemoveAll(src)
}

// configure makes the configuration and checks that it has all that was asked for.
func (c Config) configure(ctx context.Context, src, objects string) error {
	wanted, err := parseOptions(ownConfig)
	if err != nil {
		return err
	}
	c.progress("configuring the kernel")
	if err := c.make(ctx, src, objects, "tinyconfig"); err != nil {
		return err
	}
	path := filepath.Join(objects, ".config")
	base, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(mergeOptions(string(base), wanted)), 0o644); err != nil {
		return err
	}
	if err := c.make(ctx, src, objects, "olddefconfig"); err != nil {
		return err
	}
	finished, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return checkOptions(wanted, string(finished))
}

// make runs one make target out of the source tree and reports how many files it compiled.
func (c Config) make(ctx context.Context, src, objects, target string) error {
	jobs := c.Jobs
	if jobs <= 0 {
		jobs = runtime.NumCPU()
	}
	cmd := exec.CommandContext(ctx, "make", "-C", src, "O="+objects, "-j"+strconv.Itoa(jobs), target)
	// A fixed user, host and time make the same inputs give the same kernel.
	cmd.Env = append(os.Environ(), "LC_ALL=C", "ARCH=x86_64", "KBUILD_BUILD_USER=blixard", "KBUILD_BUILD_HOST=blixard",
		"KBUILD_BUILD_TIMESTAMP=1970-01-01", "KBUILD_BUILD_VERSION=1", "MAKEFLAGS=")
	// Compilers and further makes end with the first one: they would go on for minutes.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		return err
	}
	log := c.follow(out, target)
	if err := cmd.Wait(); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("make %s: %w", target, context.Cause(ctx))
		}
		return problem.New(problem.Internal, "kernel.build_failed", "make %s failed", target).
			WithCause(fmt.Errorf("%w: %s", err, tail(log))).
			WithHint("2 GiB of free disk space are needed in %s; the compiler's last lines are above", c.CacheDir)
	}
	return nil
}

// follow reads a build's output to its end, tells progress and gives the output's end.
func (c Config) follow(out io.Reader, target string) []byte {
	var log []byte
	compiled := 0
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadString('\n')
		if strings.HasPrefix(line, "  CC ") || strings.HasPrefix(line, "  AS ") {
			if compiled++; target == "vmlinux" && compiled%objectsPerReport == 0 {
				c.progress("compiling the kernel: %d of about %d files", compiled, max(objectsAbout, compiled))
			}
		}
		log = append(log, line[:min(len(line), logBytesMax)]...)
		if len(log) > 2*logBytesMax {
			log = append(log[:0], log[len(log)-logBytesMax:]...)
		}
		if err != nil {
			return log
		}
	}
}

// stripKernel drops the symbols and the sections that no VMM loads.
func stripKernel(ctx context.Context, from, to string) error {
	out, err := exec.CommandContext(ctx, "objcopy", "--strip-all", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("objcopy: %w: %s", err, tail(out))
	}
	return nil
}

// writeRecord checks the built kernel and writes what is known of it beside it.
func writeRecord(in inputs, objects, done string) error {
	path := filepath.Join(done, "vmlinux")
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := Inspect(f)
	if err != nil {
		return err
	}
	if !info.PVH {
		return errNotKernel("the kernel built has no PVH note")
	}
	sum, _, err := DigestFile(path)
	if err != nil {
		return err
	}
	raw, err := json.MarshalIndent(record{Inputs: in, Version: info.Version, SHA256: sum, Built: time.Now().UTC()}, "", "  ")
	if err != nil {
		return err
	}
	config, err := os.ReadFile(filepath.Join(objects, ".config"))
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(done, "config"), config, 0o644), f.Sync(),
		os.WriteFile(filepath.Join(done, "record.json"), raw, 0o644))
}
