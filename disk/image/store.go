package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/wallclock"
)

// Config of a Store.
type Config struct {
	// Dir holds the images; it is made when needed. One process may use it at a time.
	Dir string
	// BudgetBytes bounds what Dir holds, downloads included; 0 is no bound.
	BudgetBytes uint64
	// Mirrors are asked before the registry, in their order: HOST[:PORT] of each by
	// the registry's name, such as docker.io. They get the credentials that
	// DockerConfig has for them, never those of a PullOptions.
	Mirrors map[string][]string
	// CAFiles are certificates in PEM that registries may have beside the system's.
	CAFiles []string
	// DockerConfig is a file such as ~/.docker/config.json whose "auths" hold
	// credentials; programs that it names are not run. Empty is none.
	DockerConfig string
	// AllowPrivate lets names lead to private addresses (RFC 1918, RFC 4193,
	// RFC 6598). Without it only a registry whose name is such an address is reached.
	AllowPrivate bool
	// Logger, slog.Default() if nil.
	Logger *slog.Logger
}

// Store keeps images. It is safe for concurrent use by one process.
type Store struct {
	c       Config
	log     *slog.Logger
	roots   *x509.CertPool
	budget  *budget
	flights flights
	blobs   *blobs
	// wait is the first pause between attempts, stall the longest time without a byte.
	wait, stall time.Duration

	mu sync.Mutex
	// images by their digests.
	images map[string]*cached
	// uses are the owners by the digests of images.
	uses map[string]map[string]bool
}

// cached is an image that is there.
type cached struct {
	image *blixardv1.Image // never changed
	bytes int64            // on the host's disk

	mu      sync.Mutex
	checked stamp // of the disk when its digest was right
}

const (
	tmpDir   = "tmp"
	blobsDir = "blobs"
	// metaBytesMax of an image.json; its configuration has at most 256 KiB of text.
	metaBytesMax = 4 << 20
)

var (
	hexPattern    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// Open opens the store in c.Dir and removes what a killed process left half-written.
// Images whose files are damaged are left out and reported to the log; pulling them
// again replaces them. Problems: Invalid image.ca_file, Internal image.store.
func Open(c Config) (*Store, error) {
	s := &Store{
		c: c, log: c.Logger, budget: &budget{limit: int64(min(c.BudgetBytes, 1<<62))},
		wait: time.Second, stall: stallTimeout,
		images: map[string]*cached{}, uses: map[string]map[string]bool{},
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	var err error
	if s.c.Dir, err = filepath.Abs(c.Dir); err != nil {
		return nil, hostError(err)
	}
	if s.roots, err = readRoots(c.CAFiles); err != nil {
		return nil, err
	}
	// VMMs run as users of their own and open their disks by path: they may enter
	// these directories, though not list them.
	if err := os.MkdirAll(s.c.Dir, 0o711); err != nil {
		return nil, hostError(err)
	}
	if err := os.RemoveAll(s.path(tmpDir)); err != nil {
		return nil, hostError(err)
	}
	for _, d := range []string{tmpDir, blobsDir} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return nil, hostError(err)
		}
	}
	if s.blobs, err = openBlobs(s.path(blobsDir), s.budget); err != nil {
		return nil, hostError(err)
	}
	return s, s.load()
}

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.c.Dir}, parts...)...)
}

// readRoots gives the system's certificates and those of the files.
func readRoots(files []string) (*x509.CertPool, error) {
	if len(files) == 0 {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	for _, f := range files {
		pem, err := os.ReadFile(f)
		if err != nil || !pool.AppendCertsFromPEM(pem) {
			return nil, problem.New(problem.Invalid, "image.ca_file", "%s holds no certificate", f).WithCause(err).
				WithHint("name a file of certificates in PEM")
		}
	}
	return pool, nil
}

// load finds the images that are there.
func (s *Store) load() error {
	entries, err := os.ReadDir(s.c.Dir)
	if err != nil {
		return hostError(err)
	}
	for _, e := range entries {
		if !hexPattern.MatchString(e.Name()) {
			continue
		}
		i, err := s.readImage(e.Name())
		if err != nil {
			s.log.Warn("image left out", "digest", "sha256:"+e.Name(), "err", err)
			continue
		}
		s.images[i.image.GetDigest()] = i
		s.budget.used += i.bytes
	}
	return nil
}

// stored is what image.json holds: the image and the digest of its text.
type stored struct {
	SHA256 string          `json:"sha256"`
	Image  json.RawMessage `json:"image"`
}

func (s *Store) readImage(hexDigest string) (*cached, error) {
	f, err := os.OpenFile(s.path(hexDigest, metaFile), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, metaBytesMax))
	if err != nil {
		return nil, err
	}
	img, err := parseStored(raw)
	if err != nil {
		return nil, err
	}
	if img.GetDigest() != "sha256:"+hexDigest {
		return nil, fmt.Errorf("%s is of another image", metaFile)
	}
	st, err := os.Lstat(s.path(hexDigest, diskFile))
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || uint64(st.Size()) != img.GetDiskBytes() {
		return nil, fmt.Errorf("%s has %d bytes, not %d", diskFile, st.Size(), img.GetDiskBytes())
	}
	return &cached{image: img, bytes: allocated(st)}, nil
}

// parseStored reads an image.json.
func parseStored(raw []byte) (*blixardv1.Image, error) {
	var m stored
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(m.Image); hex.EncodeToString(sum[:]) != m.SHA256 {
		return nil, fmt.Errorf("%s is damaged", metaFile)
	}
	img := &blixardv1.Image{}
	if err := protojson.Unmarshal(m.Image, img); err != nil {
		return nil, err
	}
	return img, checkImage(img)
}

func formatStored(img *blixardv1.Image) ([]byte, error) {
	raw, err := protojson.Marshal(img)
	if err != nil {
		return nil, err
	}
	var compact bytes.Buffer // as json.Marshal writes it
	if err := json.Compact(&compact, raw); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(compact.Bytes())
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	err = enc.Encode(stored{hex.EncodeToString(sum[:]), compact.Bytes()})
	return out.Bytes(), err
}

// allocated is what a file takes on the host's disk.
func allocated(st fs.FileInfo) int64 {
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		return sys.Blocks * 512
	}
	return st.Size()
}

// newTmp makes a directory that the next Open removes.
func (s *Store) newTmp() (string, error) {
	dir, err := os.MkdirTemp(s.path(tmpDir), "")
	return dir, hostError(err)
}

// commit puts the disk in dir in its place, durably and in one step, as img. What h
// holds of the budget becomes the image's.
func (s *Store) commit(dir string, img *blixardv1.Image, h *hold) (*blixardv1.Image, error) {
	if img.GetCreatedAt() == nil {
		img.CreatedAt = timestampOf(wallclock.Now())
	}
	if err := checkImage(img); err != nil {
		return nil, err
	}
	disk := filepath.Join(dir, diskFile)
	st, err := os.Lstat(disk)
	if err != nil {
		return nil, hostError(err)
	}
	meta, err := formatStored(img)
	if err != nil {
		return nil, hostError(err)
	}
	if err := writeSynced(filepath.Join(dir, metaFile), meta); err != nil {
		return nil, hostError(err)
	}
	if err := errors.Join(os.Chmod(disk, 0o444), os.Chmod(dir, 0o711), syncDir(dir)); err != nil {
		return nil, hostError(err)
	}
	if there, _, err := s.Get(img.GetDigest()); err == nil && there.GetDiskDigest() == img.GetDiskDigest() {
		return there, nil // others may have it open: it stays
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := errors.Join(exchange(dir, s.hexPath(img.GetDigest())), syncDir(s.c.Dir)); err != nil {
		return nil, hostError(err)
	}
	if old := s.images[img.GetDigest()]; old != nil {
		s.budget.give(old.bytes)
	}
	i := &cached{image: img, bytes: allocated(st), checked: stampOf(st)}
	// Renaming and its new mode changed when the inode was changed, not the bytes.
	if st, err := os.Lstat(filepath.Join(s.hexPath(img.GetDigest()), diskFile)); err == nil {
		i.checked = stampOf(st)
	}
	h.settle(i.bytes)
	s.images[img.GetDigest()] = i
	return proto.CloneOf(img), nil
}

// exchange puts a directory in a place in one step; what was there, if anything, is
// then where it came from.
func exchange(dir, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, to, unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) {
		return os.Rename(dir, to)
	}
	if errors.Is(err, unix.EINVAL) { // the file system cannot: two steps, and a crash between them leaves no image
		return errors.Join(os.Rename(to, dir+".old"), os.Rename(dir, to), os.Rename(dir+".old", dir))
	}
	return err
}

func (s *Store) hexPath(digest string) string { return s.path(strings.TrimPrefix(digest, "sha256:")) }

// writeSynced writes a new file durably.
func writeSynced(path string, b []byte) error {
	f, err := createFile(path)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Chmod(0o444), f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// discard removes a directory of Dir so that a crash leaves nothing half of it.
func (s *Store) discard(dir string) error {
	to := s.path(tmpDir, "gone-"+filepath.Base(dir))
	if err := os.RemoveAll(to); err != nil {
		return hostError(err)
	}
	if err := os.Rename(dir, to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return hostError(err)
	}
	return hostError(os.RemoveAll(to))
}

// stamp tells whether a file is still the one that was checked.
type stamp struct {
	dev, inode uint64
	bytes      int64
	modified   time.Time
	changed    syscall.Timespec
}

func stampOf(st fs.FileInfo) stamp {
	s := stamp{bytes: st.Size(), modified: st.ModTime()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		s.dev, s.inode, s.changed = sys.Dev, sys.Ino, sys.Ctim
	}
	return s
}

func noImage(digest string) *problem.Error {
	return problem.New(problem.NotFound, "image.not_found", "the node has no image %s", clip(digest)).
		WithHint("pull or import it")
}

// Get gives an image and the path of its disk, whose bytes were held against its
// digest since this process first saw that file. The disk must not be written.
// Problems: NotFound image.not_found, Internal image.damaged.
func (s *Store) Get(digest string) (*blixardv1.Image, string, error) {
	s.mu.Lock()
	i := s.images[digest]
	s.mu.Unlock()
	if i == nil {
		return nil, "", noImage(digest)
	}
	path := filepath.Join(s.hexPath(digest), diskFile)
	if err := i.verify(context.Background(), path); err != nil {
		return nil, "", err
	}
	return proto.CloneOf(i.image), path, nil
}

// verify holds the disk's bytes against its digest unless it is the very file that
// was right before.
func (i *cached) verify(ctx context.Context, path string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return damaged(i.image, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return damaged(i.image, err)
	}
	if i.checked == stampOf(st) {
		return nil
	}
	if !st.Mode().IsRegular() || uint64(st.Size()) != i.image.GetDiskBytes() {
		return damaged(i.image, fmt.Errorf("its disk has %d bytes, not %d", st.Size(), i.image.GetDiskBytes()))
	}
	digest, err := digestOf(ctx, f)
	if err != nil {
		return damaged(i.image, err)
	}
	if digest != i.image.GetDiskDigest() {
		return damaged(i.image, fmt.Errorf("its disk has the digest %.23s and not %.23s", digest, i.image.GetDiskDigest()))
	}
	i.checked = stampOf(st)
	return nil
}

func damaged(img *blixardv1.Image, err error) *problem.Error {
	return problem.New(problem.Internal, "image.damaged", "image %s (%.19s) is damaged on this node", img.GetName(), img.GetDigest()).WithCause(err).
		WithHint("pull it again, which replaces it; look after the node's disk")
}

// List gives the images that are there, by name and digest. The name of one that was
// brought in several times is the first.
func (s *Store) List() []*blixardv1.Image {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*blixardv1.Image
	for _, digest := range slices.Sorted(maps.Keys(s.images)) {
		all = append(all, proto.CloneOf(s.images[digest].image))
	}
	slices.SortStableFunc(all, func(a, b *blixardv1.Image) int { return strings.Compare(a.GetName(), b.GetName()) })
	return all
}

// Use says that owner, such as an allocation, has the image's disk open: it stays
// until Release. Uses are not kept over a restart. It fails with image.not_found.
func (s *Store) Use(digest, owner string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.images[digest] == nil {
		return noImage(digest)
	}
	if s.uses[digest] == nil {
		s.uses[digest] = map[string]bool{}
	}
	s.uses[digest][owner] = true
	return nil
}

// Release ends all uses of an owner. It is idempotent.
func (s *Store) Release(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for digest, owners := range s.uses {
		if delete(owners, owner); len(owners) == 0 {
			delete(s.uses, digest)
		}
	}
}

// Remove removes an image. Problems: NotFound image.not_found, Conflict
// image.in_use.
func (s *Store) Remove(digest string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := s.images[digest]
	if i == nil {
		return noImage(digest)
	}
	if owners := s.uses[digest]; len(owners) > 0 {
		return problem.New(problem.Conflict, "image.in_use", "image %s is used by %s", i.image.GetName(), clip(strings.Join(slices.Sorted(maps.Keys(owners)), ", "))).
			WithHint("delete what uses it first")
	}
	return s.dropLocked(digest)
}

// dropLocked removes an image. mu must be held.
func (s *Store) dropLocked(digest string) error {
	if err := s.discard(s.hexPath(digest)); err != nil {
		return err
	}
	s.budget.give(s.images[digest].bytes)
	delete(s.images, digest)
	return nil
}

// Prune removes the images that nobody uses and keep does not want, and downloads
// that are not going on. It gives what it removed.
func (s *Store) Prune(keep func(digest string) bool) ([]*blixardv1.Image, error) {
	var gone []*blixardv1.Image
	var errs []error
	for _, img := range s.List() {
		if keep(img.GetDigest()) {
			continue
		}
		switch err := s.Remove(img.GetDigest()); {
		case err == nil:
			gone = append(gone, img)
		case !problem.HasCode(err, "image.in_use") && !problem.HasCode(err, "image.not_found"):
			errs = append(errs, err)
		}
	}
	errs = append(errs, hostError(s.blobs.prune()))
	return gone, errors.Join(errs...)
}
