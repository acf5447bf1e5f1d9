package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/wallclock"
)

// blobs are files on their way in, by their digests: NAME.part while they come, NAME
// when they are whole. They stay over a failure and a crash, so that the next try
// goes on where the last one ended.
type blobs struct {
	dir    string
	budget *budget

	mu    sync.Mutex
	files map[string]*blob
}

type blob struct {
	users int
	lock  chan struct{} // holds a token while somebody works on the files
	bytes int64         // counted in the budget; guarded by lock
}

const partSuffix = ".part"

// openBlobs removes what is older than blobsKept and counts the rest.
func openBlobs(dir string, b *budget) (*blobs, error) {
	s := &blobs{dir: dir, budget: b, files: map[string]*blob{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			return nil, err
		}
		name := strings.TrimSuffix(e.Name(), partSuffix)
		age := wallclock.Now().Sub(st.ModTime())
		if !hexPattern.MatchString(name) || !st.Mode().IsRegular() || age > blobsKept {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return nil, err
			}
			continue
		}
		f := s.file(name)
		f.bytes += st.Size()
		b.used += st.Size()
	}
	return s, nil
}

// file gives the entry of a name. mu must be held, or nobody else be there.
func (s *blobs) file(name string) *blob {
	f := s.files[name]
	if f == nil {
		f = &blob{lock: make(chan struct{}, 1)}
		s.files[name] = f
	}
	return f
}

// use keeps a blob's files from being pruned until release.
func (s *blobs) use(digest string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.file(strings.TrimPrefix(digest, "sha256:"))
	f.users++
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		f.users--
	})
}

// prune removes the blobs that nobody uses.
func (s *blobs) prune() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for name := range s.files {
		errs = append(errs, s.removeLocked(name))
	}
	return errors.Join(errs...)
}

// remove removes a blob unless somebody uses it.
func (s *blobs) remove(digest string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removeLocked(strings.TrimPrefix(digest, "sha256:"))
}

func (s *blobs) removeLocked(name string) error {
	f := s.files[name]
	if f == nil || f.users > 0 {
		return nil
	}
	for _, n := range []string{name, name + partSuffix} {
		if err := os.Remove(filepath.Join(s.dir, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	s.budget.give(f.bytes)
	delete(s.files, name)
	return nil
}

// take moves a whole blob away, durably, and no longer counts it.
func (s *blobs) take(digest, path, to string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path, to); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.file(strings.TrimPrefix(digest, "sha256:"))
	s.budget.give(b.bytes)
	b.bytes = 0
	return nil
}

// download is one blob to be brought in.
type download struct {
	digest string
	size   int64
	// sparse leaves holes for zeros.
	sparse bool
	// fetch gives the bytes from an offset on, or from where it says.
	fetch func(ctx context.Context, offset int64) (body io.ReadCloser, start int64, err error)
	// progress is told how many bytes are there.
	progress    func(done int64)
	wait, stall time.Duration
}

// permanent marks an error that another attempt would meet again.
type permanent struct{ err error }

func (p permanent) Error() string { return p.err.Error() }
func (p permanent) Unwrap() error { return p.err }

// get brings a blob in, or finds it there, and gives its path. Its digest was found
// right. The caller must have used it.
func (s *blobs) get(ctx context.Context, d download) (string, error) {
	name := strings.TrimPrefix(d.digest, "sha256:")
	s.mu.Lock()
	b := s.file(name)
	s.mu.Unlock()
	select {
	case b.lock <- struct{}{}:
		defer func() { <-b.lock }()
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	path := filepath.Join(s.dir, name)
	if s.isWhole(ctx, path, d) {
		d.progress(d.size)
		return path, nil
	}
	f, err := os.OpenFile(path+partSuffix, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return "", hostError(err)
	}
	defer f.Close()
	p := &part{download: d, f: f, blob: b, budget: s.budget}
	if err := p.run(ctx); err != nil {
		return "", err
	}
	return path, hostError(os.Rename(path+partSuffix, path))
}

// isWhole tells whether the blob is there, and removes one that is not right.
func (s *blobs) isWhole(ctx context.Context, path string, d download) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Mode().IsRegular() && st.Size() == d.size {
		if digest, err := digestOf(ctx, f); err == nil && digest == d.digest {
			return true
		}
	}
	if ctx.Err() == nil {
		_ = os.Remove(path) // a failure shows when the new one is put there
	}
	return false
}

// part is a blob of which a part is there.
type part struct {
	download
	f      *os.File
	blob   *blob
	budget *budget

	have int64
	sum  hash.Hash
	zero []byte
}

// resume takes what an earlier try left.
func (p *part) resume(ctx context.Context) error {
	st, err := p.f.Stat()
	if err != nil {
		return hostError(err)
	}
	p.sum = sha256.New()
	if st.Size() > p.size {
		return p.restart()
	}
	p.have, err = io.Copy(p.sum, &contextReader{ctx, p.f})
	if err == nil {
		err = p.count(p.have)
	}
	return hostError(err)
}

// restart throws away what is there.
func (p *part) restart() error {
	p.have = 0
	p.sum.Reset()
	return errors.Join(hostError(p.f.Truncate(0)), p.count(0))
}

// count makes the budget hold the bytes of the file.
func (p *part) count(bytes int64) error {
	if more := bytes - p.blob.bytes; more > 0 {
		if err := p.budget.take(more); err != nil {
			return err
		}
	} else {
		p.budget.give(-more)
	}
	p.blob.bytes = bytes
	return nil
}

func (p *part) run(ctx context.Context) error {
	if err := p.resume(ctx); err != nil {
		return err
	}
	resumed := p.have > 0
	wait, failures := p.wait, 0
	for {
		before := p.have
		err := p.attempt(ctx)
		if p.have == p.size {
			got := "sha256:" + hex.EncodeToString(p.sum.Sum(nil))
			if got == p.digest {
				return nil
			}
			if rerr := p.restart(); rerr != nil {
				return rerr
			}
			if !resumed {
				return digestMismatch("what was sent", got, p.digest)
			}
			resumed = false // what was there may have been wrong
			continue
		}
		var fixed permanent
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &fixed):
			return fixed.err
		}
		// Only an attempt that brought much counts as a success, or a registry could
		// keep a node busy with single bytes.
		if p.have-before >= progressBytes {
			wait, failures = p.wait, 0
		} else if failures++; failures >= attemptsMax {
			return unreachable("the download broke off %d times, the last time at byte %d of %d", failures, p.have, p.size).WithCause(err)
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, time.Minute)
	}
}

func unreachable(format string, args ...any) *problem.Error {
	return problem.New(problem.Unavailable, "image.registry_unreachable", format, args...).
		WithHint("see whether the registry is up and reached from this node; what was downloaded is kept for the next try")
}

// pause waits unless the context ends.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// errStalled ends an attempt.
var errStalled = errors.New("nothing came any more")

// attempt takes what one answer brings.
func (p *part) attempt(ctx context.Context) error {
	if p.have == p.size {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(p.stall+headerTimeout, func() { cancel(errStalled) })
	defer watch.Stop()
	body, start, err := p.fetch(ctx, p.have)
	if err != nil {
		return err
	}
	defer body.Close()
	switch {
	case start == 0 && p.have > 0:
		if err := p.restart(); err != nil {
			return err
		}
	case start != p.have:
		return fmt.Errorf("the answer begins at byte %d, asked was %d", start, p.have)
	}
	buffer := make([]byte, 256<<10)
	for p.have < p.size {
		watch.Reset(p.stall)
		n, err := body.Read(buffer[:min(int64(len(buffer)), p.size-p.have)])
		if n > 0 {
			if werr := p.write(buffer[:n]); werr != nil {
				return permanent{hostError(werr)}
			}
			p.progress(p.have)
		}
		if errors.Is(err, io.EOF) && p.have < p.size {
			return io.ErrUnexpectedEOF
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return errors.Join(err, context.Cause(ctx))
		}
	}
	return nil
}

func (p *part) write(b []byte) error {
	if err := p.count(p.have + int64(len(b))); err != nil {
		return err
	}
	if p.zero == nil {
		p.zero = make([]byte, 256<<10)
	}
	var err error
	if p.sparse && bytes.Equal(b, p.zero[:len(b)]) {
		err = p.f.Truncate(p.have + int64(len(b)))
	} else {
		_, err = p.f.WriteAt(b, p.have)
	}
	if err != nil {
		return err
	}
	p.sum.Write(b)
	p.have += int64(len(b))
	return nil
}
