package agent

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/internal/problem"
)

// Bounds of what is taken out of a guest.
const (
	// artifactBytesMax of one attempt, and artifactsBytesMax of all that the node keeps.
	artifactBytesMax  = 64 << 20
	artifactsBytesMax = 10 << 30
	// artifactFilesMax of one attempt, directories and links included.
	artifactFilesMax = 10_000
	// artifactsTimeout is less than a guest waits for the acknowledgement of its end.
	artifactsTimeout = 2 * time.Minute
	// artifactNameMax bytes of a path, as the kernel has it.
	artifactNameMax = 4096
	// artifactNotesMax bytes: one sentence for each path.
	artifactNotesMax = 64 << 10

	artifactsFile = "artifacts.tar"
	artifactNotes = "artifacts.note"
)

var (
	errArtifactFiles = fmt.Errorf("it has more than %d files", artifactFilesMax)
	errArtifactBytes = fmt.Errorf("it is larger than %d MiB", artifactBytesMax>>20)
)

// takeArtifacts writes the files of a guest whose command ended into an archive beside its
// log. What can't be had is noted, and no reason for the task to fail. Taken again after a
// crash, it begins anew.
func (a *Agent) takeArtifacts(ctx context.Context, id string, paths []string, from *guest.Session) error {
	ctx, cancel := context.WithTimeout(ctx, artifactsTimeout)
	defer cancel()
	dir, err := a.journal.path(id)
	if err != nil {
		return err
	}
	file, err := renameio.NewPendingFile(filepath.Join(dir, artifactsFile), renameio.WithPermissions(0o600))
	if err != nil {
		return fmt.Errorf("agent: keep files of %s: %w", id, err)
	}
	defer func() { _ = file.Cleanup() }()
	left := int64(artifactBytesMax)
	if kept := a.outputs.artifactBytes(); kept > artifactsBytesMax-left {
		return a.noteArtifacts(dir, []string{fmt.Sprintf("the node keeps %d MiB of files of tasks, and no more than %d", kept>>20, artifactsBytesMax>>20)})
	}
	taken := &artifacts{out: tar.NewWriter(file), bytes: left, files: artifactFilesMax}
	var notes []string
	for _, p := range paths {
		if err := taken.take(ctx, from, path.Clean(p)); err != nil {
			notes = append(notes, p+" is not whole: "+lastLine(err.Error()))
			if errors.Is(err, errArtifactBytes) || errors.Is(err, errArtifactFiles) || taken.broken {
				break
			}
		}
	}
	if taken.broken {
		return a.noteArtifacts(dir, notes) // the archive ends within a file
	}
	if err := errors.Join(taken.out.Close(), a.noteArtifacts(dir, notes)); err != nil {
		return fmt.Errorf("agent: keep files of %s: %w", id, err)
	}
	return file.CloseAtomicallyReplace()
}

func (a *Agent) noteArtifacts(dir string, notes []string) error {
	text := strings.Join(notes, "\n")
	return renameio.WriteFile(filepath.Join(dir, artifactNotes), []byte(text[:min(len(text), artifactNotesMax)]), 0o600)
}

// artifacts is an archive in the making. What it is made of is a stranger's.
type artifacts struct {
	out   *tar.Writer
	bytes int64
	files int
	// broken: a file was cut, so nothing can follow it.
	broken bool
}

// take adds a path of the guest.
func (t *artifacts) take(ctx context.Context, from *guest.Session, name string) error {
	r, err := from.CopyFrom(ctx, name)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return t.add(r, path.Dir(name))
}

// add takes over the entries of an archive whose names are below dir. Of an entry only its
// name, size, time, permission bits and link remain; devices and pipes are left out.
func (t *artifacts) add(r io.Reader, dir string) error {
	// Headers and padding are more than files, but not without end.
	in := tar.NewReader(io.LimitReader(r, 2*artifactBytesMax+artifactFilesMax*4096))
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.CopyN(io.Discard, r, artifactBytesMax)
			if errors.Is(err, io.EOF) {
				return nil // the end says that the copy is whole
			}
			return err
		}
		if err != nil {
			return err
		}
		if t.files--; t.files < 0 {
			return errArtifactFiles
		}
		name, ok := below(dir, h.Name)
		if !ok {
			continue
		}
		next := &tar.Header{Typeflag: h.Typeflag, Name: name, Mode: h.Mode & 0o777, ModTime: h.ModTime.Truncate(time.Second), Format: tar.FormatPAX}
		switch h.Typeflag {
		case tar.TypeDir:
			next.Name += "/"
		case tar.TypeReg:
			next.Size = h.Size
		case tar.TypeSymlink:
			if next.Linkname = h.Linkname; len(next.Linkname) > artifactNameMax {
				continue
			}
		case tar.TypeLink:
			if next.Linkname, ok = below(dir, h.Linkname); !ok {
				continue
			}
		default:
			continue
		}
		if t.bytes -= next.Size; t.bytes < 0 || next.Size < 0 {
			return errArtifactBytes
		}
		if err := t.out.WriteHeader(next); err != nil {
			return err
		}
		if _, err := io.Copy(t.out, in); err != nil {
			t.broken = true
			return err
		}
	}
}

// below gives the path of an entry, without the first slash.
func below(dir, name string) (string, bool) {
	p := strings.TrimPrefix(path.Join(dir, path.Clean("/"+name)), "/")
	return p, p != "" && len(p) <= artifactNameMax
}

// artifactBytes is how much the node keeps of the files of VMs that are gone.
func (o *outputs) artifactBytes() int64 {
	total := int64(0)
	found, err := filepath.Glob(filepath.Join(o.dir, "*", artifactsFile))
	if err != nil {
		return 0
	}
	for _, p := range found {
		if st, err := os.Lstat(p); err == nil {
			total += st.Size()
		}
	}
	return total
}

// Artifacts gives the archive of the files that an allocation left, nil when there is none
// of them, and what is to be said of it. A problem of kind NotFound says that nothing is
// known of it. It may be called concurrently with everything; the caller closes the archive.
func (a *Agent) Artifacts(allocID string) (archive *os.File, notes []string, err error) {
	dir, err := a.journal.path(allocID)
	if err != nil {
		return nil, nil, err
	}
	// They may be taken to where they are kept between the looks.
	for _, d := range []string{filepath.Join(a.outputs.dir, allocID), dir, filepath.Join(a.outputs.dir, allocID)} {
		raw, noteErr := readBounded(filepath.Join(d, artifactNotes), artifactNotesMax)
		archive, err = openRegular(filepath.Join(d, artifactsFile))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("agent: files of %s: %w", allocID, err)
		}
		if archive == nil && noteErr != nil {
			continue
		}
		if len(raw) > 0 {
			notes = strings.Split(string(raw), "\n")
		}
		return archive, notes, nil
	}
	return nil, nil, problem.New(problem.NotFound, "artifacts.none", "there are no files of allocation %s on this node", allocID).
		WithHint("its command did not come to its end, or they were kept long enough")
}
