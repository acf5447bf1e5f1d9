package cli

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/blixard/blixard/internal/problem"
)

// unpack puts the tar stream of a guest below dir; name, when set, replaces its top.
// The stream is a stranger's: nothing of it leaves dir, and neither devices nor
// owners nor set-user-id bits are taken over.
func unpack(r io.Reader, dir, name string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	t := tar.NewReader(r)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			_, err := io.Copy(io.Discard, r) // the end says that the copy is whole
			return err
		}
		if err != nil {
			return err
		}
		p := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if p == "" {
			continue
		}
		if name != "" {
			_, below, _ := strings.Cut(p, "/")
			p = path.Join(name, below)
		}
		if err := unpackOne(root, t, h, p, name); err != nil {
			return problem.New(problem.Invalid, "copy.file", "copy %s", p).WithCause(err).WithHint("see whether you may write there, and whether something else is in the way")
		}
	}
}

func unpackOne(root *os.Root, t *tar.Reader, h *tar.Header, p, name string) error {
	mode := fs.FileMode(h.Mode).Perm()
	if parent := path.Dir(p); parent != "." {
		if err := root.MkdirAll(parent, 0o777); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(p, mode|0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		return nil
	case tar.TypeReg:
		if err := root.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		f, err := root.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, t)
		return errors.Join(err, f.Close())
	case tar.TypeSymlink:
		_ = root.Remove(p)
		return root.Symlink(h.Linkname, p)
	case tar.TypeLink:
		old := strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")
		if name != "" {
			_, below, _ := strings.Cut(old, "/")
			old = path.Join(name, below)
		}
		_ = root.Remove(p)
		return root.Link(old, p)
	}
	return nil // devices and pipes are of no use here
}

// ignoreMissing turns the error of a path that is not there into none.
func ignoreMissing(err error) error {
	if problem.Is(problem.From(err), problem.NotFound) && problem.HasCode(err, "guest.copy") {
		return nil
	}
	return err
}
