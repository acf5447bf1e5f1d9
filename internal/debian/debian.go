package debian

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/blixard/blixard/internal/filelock"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// resolveTimeout bounds one question to apt's lists, which are local.
	resolveTimeout = time.Minute
	// updateTimeout bounds fetching the lists: some 10 MiB.
	updateTimeout = 5 * time.Minute
	// downloadTimeout bounds one package: the largest, the kernel's source, has 133 MiB.
	downloadTimeout = 20 * time.Minute
	// unpackTimeout bounds dpkg-deb.
	unpackTimeout = 5 * time.Minute
	// outputBytesMax is how much of a tool's output is kept for an error.
	outputBytesMax = 2 << 10
	// packageBytesMax is the largest package taken.
	packageBytesMax = 1 << 30
)

// Package is one version of a Debian package.
type Package struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	// SHA256 is the digest in hex that Debian's signed lists give.
	SHA256 string `json:"sha256"`
	Bytes  int64  `json:"bytes"`
}

// Fetcher gets packages into a cache directory. It is safe for concurrent use, also by several
// processes on one cache directory.
type Fetcher struct {
	// CacheDir is made if it is missing; what is in it may be deleted at any time no fetch runs.
	CacheDir string
	// Progress, if not nil, is told in a short sentence what begins.
	Progress func(string)
}

func (f *Fetcher) progress(format string, args ...any) {
	if f.Progress != nil {
		f.Progress(fmt.Sprintf(format, args...))
	}
}

var (
	namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]{1,127}$`)
	uriPattern  = regexp.MustCompile(`(?m)^'[^']*' (\S+)\.deb (\d+) SHA256:([0-9a-f]{64})\s*$`)
)

// Resolve finds the version of the package that apt would install. It uses the host's package lists;
// where they are empty, lists of its own below CacheDir. When neither can be had (no network) the
// answer of the last time is given. It fails with a problem of kind NotFound when Debian has no such
// package.
func (f *Fetcher) Resolve(ctx context.Context, name string) (Package, error) {
	out, err := f.ask(ctx, name, "apt-get", "--print-uris", "download", name)
	if err != nil {
		if p, old := f.remembered(name); old == nil {
			f.progress("taking %s %s, as known from before: %v", name, p.Version, err)
			return p, nil
		}
		return Package{}, err
	}
	p, err := parseURI(name, out)
	if err != nil {
		return Package{}, err
	}
	return p, f.remember(p)
}

// parseURI reads a line such as
// 'http://.../p_1%3a2-3_amd64.deb' p_1%3a2-3_amd64.deb 928188 SHA256:...
func parseURI(name string, out []byte) (Package, error) {
	m := uriPattern.FindSubmatch(out)
	if m == nil {
		return Package{}, problem.New(problem.Internal, "debian.apt_output", "apt-get did not say where %s is: %q", name, clip(out))
	}
	size, err := strconv.ParseInt(string(m[2]), 10, 64)
	parts := strings.Split(string(m[1]), "_")
	if err != nil || len(parts) != 3 || parts[0] != name || size <= 0 || size > packageBytesMax {
		return Package{}, problem.New(problem.Internal, "debian.apt_output", "apt-get answered %q for %s", clip(m[0]), name)
	}
	version, err := url.PathUnescape(parts[1])
	if err != nil || strings.ContainsAny(version, "/\x00") {
		return Package{}, problem.New(problem.Internal, "debian.apt_output", "apt-get gave the version %q for %s", parts[1], name)
	}
	return Package{Name: name, Version: version, SHA256: string(m[3]), Bytes: size}, nil
}

// Depends gives the names of the packages that a package depends on, without their alternatives.
func (f *Fetcher) Depends(ctx context.Context, name string) ([]string, error) {
	out, err := f.ask(ctx, name, "apt-cache", "--no-all-versions", "show", name)
	if err != nil {
		return nil, err
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		list, ok := strings.CutPrefix(line, "Depends: ")
		if !ok {
			continue
		}
		for dep := range strings.SplitSeq(list, ",") {
			if fields := strings.Fields(dep); len(fields) > 0 && namePattern.MatchString(fields[0]) {
				names = append(names, fields[0])
			}
		}
	}
	return names, nil
}

// ask puts a question to apt's lists, and with lists of our own when the host's do not know the
// package.
func (f *Fetcher) ask(ctx context.Context, name string, args ...string) ([]byte, error) {
	if !namePattern.MatchString(name) {
		return nil, problem.New(problem.Invalid, "debian.package_name", "%q is no name of a Debian package", name)
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout+updateTimeout)
	defer cancel()
	out, err := f.apt(ctx, f.CacheDir, args...)
	if err == nil && len(bytes.TrimSpace(out)) > 0 {
		return out, nil
	}
	if problem.HasCode(err, "tools.missing") {
		return nil, err
	}
	own, updateErr := f.ownLists(ctx)
	// One source of several may be out of reach: what the others have is good.
	out, err = f.apt(ctx, f.CacheDir, append([]string{args[0]}, append(own, args[1:]...)...)...)
	if err != nil || len(bytes.TrimSpace(out)) == 0 {
		if updateErr != nil {
			return nil, updateErr
		}
		return nil, problem.New(problem.NotFound, "debian.no_package", "Debian's package lists have no %s", name).WithCause(err).
			WithHint("run apt-get update; /etc/apt/sources.list must name Debian 12 (bookworm)")
	}
	return out, nil
}

// ownLists makes package lists below the cache directory, which needs no privileges, and gives the
// options that make apt use them, also beside an error.
func (f *Fetcher) ownLists(ctx context.Context) ([]string, error) {
	dir := filepath.Join(f.CacheDir, "apt")
	opts := []string{
		"-o", "Dir::State=" + dir, "-o", "Dir::State::lists=" + filepath.Join(dir, "lists"),
		"-o", "Dir::Cache=" + filepath.Join(dir, "cache"), "-o", "APT::Sandbox::User=",
		"-o", "APT::Update::Error-Mode=any", // a network that fails is else a success with a warning
	}
	for _, d := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			return opts, err
		}
	}
	release, err := filelock.Acquire(ctx, filepath.Join(dir, "lock"))
	if err != nil {
		return opts, err
	}
	defer release()
	f.progress("fetching Debian's package lists")
	if _, err := f.apt(ctx, f.CacheDir, append(append([]string{"apt-get"}, opts...), "update", "-q")...); err != nil {
		return opts, problem.New(problem.Unavailable, "debian.lists", "Debian's package lists cannot be fetched").WithCause(err).
			WithHint("check the network and /etc/apt/sources.list, then try: apt-get update")
	}
	return opts, nil
}

// Fetch gives the path of the package's file, from the cache or downloaded. The digest is checked
// either way.
func (f *Fetcher) Fetch(ctx context.Context, p Package) (string, error) {
	path := filepath.Join(f.CacheDir, "debs", fmt.Sprintf("%s_%s_%.16s.deb", p.Name, url.PathEscape(p.Version), p.SHA256))
	release, err := filelock.Acquire(ctx, path+".lock")
	if err != nil {
		return "", err
	}
	defer release()
	if err := checkDigest(path, p); err == nil {
		return path, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		f.progress("%s in the cache is damaged, fetching it again", filepath.Base(path))
	}
	f.progress("downloading %s %s (%.1f MiB)", p.Name, p.Version, float64(p.Bytes)/(1<<20))
	ctx, cancel := context.WithTimeout(ctx, downloadTimeout)
	defer cancel()
	if err := f.download(ctx, p, path); err != nil {
		return "", problem.New(problem.Unavailable, "debian.download", "%s %s cannot be downloaded", p.Name, p.Version).
			WithCause(err).WithHint("check the network and free disk space, run apt-get update, and try again")
	}
	return path, nil
}

func (f *Fetcher) download(ctx context.Context, p Package, path string) error {
	tmp, err := os.MkdirTemp("", "blixard-apt-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := giveToApt(tmp); err != nil {
		return err
	}
	args := []string{"apt-get", "-q", "download", p.Name + "=" + p.Version}
	if _, err := f.apt(ctx, tmp, args...); err != nil {
		own, updateErr := f.ownLists(ctx)
		if _, ownErr := f.apt(ctx, tmp, append(append([]string{"apt-get"}, own...), args[1:]...)...); ownErr != nil {
			return errors.Join(err, updateErr, ownErr)
		}
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get left %d files", len(debs))
	}
	if err := checkDigest(debs[0], p); err != nil {
		return err
	}
	part := path + ".part"
	defer func() { _ = os.Remove(part) }()
	if err := copyFile(debs[0], part); err != nil {
		return err
	}
	return os.Rename(part, path)
}

// giveToApt lets the user _apt write into dir, so that root's apt-get downloads without root's
// rights. Where there is no such user, or the caller is not root, nothing is to be done.
func giveToApt(dir string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("_apt")
	if err != nil {
		return nil //nolint:nilerr // apt then warns and downloads as root
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return err
	}
	return os.Chown(dir, uid, -1)
}

func checkDigest(path string, p Package) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(file, p.Bytes+1))
	if err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); n != p.Bytes || got != p.SHA256 {
		return fmt.Errorf("%s has not the digest sha256:%s that Debian's lists give", filepath.Base(path), p.SHA256)
	}
	return nil
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	return errors.Join(out.Sync(), out.Close())
}

// Unpack unpacks a package file into the directory dir, which must exist.
func (f *Fetcher) Unpack(ctx context.Context, deb, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, unpackTimeout)
	defer cancel()
	_, err := f.run(ctx, dir, "dpkg-deb", "-x", deb, dir)
	return err
}

// apt runs one of apt's programs as if nothing were installed: a version that the host
// has and no list any more would be its choice, and could not be had.
func (f *Fetcher) apt(ctx context.Context, dir string, args ...string) ([]byte, error) {
	return f.run(ctx, dir, append([]string{args[0], "-o", "Dir::State::status=/dev/null"}, args[1:]...)...)
}

// run runs a tool in dir and gives its standard output.
func (f *Fetcher) run(ctx context.Context, dir string, args ...string) ([]byte, error) {
	if err := RequireTools(args[0]); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(args[0]), err, clip(errs.Bytes()))
	}
	return out.Bytes(), nil
}

// clip gives the end of a tool's output, for an error.
func clip(b []byte) string {
	b = bytes.TrimSpace(b)
	return string(b[max(0, len(b)-outputBytesMax):])
}

func (f *Fetcher) rememberedPath(name string) string {
	return filepath.Join(f.CacheDir, "resolved", name+".json")
}

func (f *Fetcher) remember(p Package) error {
	raw, err := json.Marshal(p)
	if err != nil {
		return err
	}
	path := f.rememberedPath(p.Name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(raw)
	if err := errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func (f *Fetcher) remembered(name string) (Package, error) {
	if !namePattern.MatchString(name) {
		return Package{}, os.ErrNotExist
	}
	raw, err := os.ReadFile(f.rememberedPath(name))
	if err != nil {
		return Package{}, err
	}
	var p Package
	if err := json.Unmarshal(raw, &p); err != nil || p.Name != name {
		return Package{}, errors.New("not a package")
	}
	return p, nil
}
