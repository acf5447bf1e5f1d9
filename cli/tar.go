package cli

import (
	"archive/tar"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// tarOf gives a directory's files as a tar stream. Close ends it early.
func tarOf(dir string) io.ReadCloser {
	r, w := io.Pipe()
	go func() {
		t := tar.NewWriter(w)
		err := t.AddFS(os.DirFS(dir))
		if err == nil {
			err = t.Close()
		}
		_ = w.CloseWithError(err)
	}()
	return r
}

// writeTar puts a file or a directory into a tar stream, under a name of its own.
// Links are kept as links, and owners as numbers.
func writeTar(w io.Writer, path, name string) error {
	t := tar.NewWriter(w)
	err := filepath.WalkDir(path, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(path, at)
		if err != nil {
			return err
		}
		return putEntry(t, at, filepath.ToSlash(filepath.Join(name, rel)), d)
	})
	if err != nil {
		return err
	}
	return t.Close()
}

func putEntry(t *tar.Writer, at, name string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(at); err != nil {
			return err
		}
	}
	if info.Mode()&(fs.ModeSocket|fs.ModeNamedPipe|fs.ModeDevice|fs.ModeCharDevice) != 0 {
		return nil // of no use elsewhere
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name = name
	if d.IsDir() {
		h.Name += "/"
	}
	// Names are this host's; numbers mean the same anywhere.
	h.Uname, h.Gname = "", ""
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(at)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = io.CopyN(t, f, h.Size)
	return err
}
