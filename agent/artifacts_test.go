package agent

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blixard/blixard/internal/problem"
)

// hostile makes an archive of headers that no honest guest sends.
func hostile(t *testing.T, headers ...*tar.Header) *bytes.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b.Bytes())
}

func names(t *testing.T, b *bytes.Buffer) string {
	t.Helper()
	var list []string
	for r := tar.NewReader(b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return strings.Join(list, " ")
		}
		if err != nil {
			t.Fatal(err)
		}
		name := h.Name
		if h.Linkname != "" {
			name += ">" + h.Linkname
		}
		if h.Mode&^0o777 != 0 || h.Uid != 0 || h.Gid != 0 || len(h.PAXRecords["SCHILY.xattr.user.a"]) > 0 {
			t.Errorf("%s keeps more than it should: %+v", name, h)
		}
		list = append(list, name)
	}
}

// TestArtifactsOfAHostileGuest: names stay below where they were asked for, devices and
// bits that give rights are left out, and what is too much ends it.
func TestArtifactsOfAHostileGuest(t *testing.T) {
	var b bytes.Buffer
	a := &artifacts{out: tar.NewWriter(&b), bytes: artifactBytesMax, files: artifactFilesMax}
	err := a.add(hostile(t,
		&tar.Header{Typeflag: tar.TypeDir, Name: "out/", Mode: 0o7755, Uid: 7},
		&tar.Header{Typeflag: tar.TypeReg, Name: "out/../../../etc/passwd", Size: 3, Mode: 0o4755},
		&tar.Header{Typeflag: tar.TypeReg, Name: "/abs", Size: 1, Gid: 8, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}},
		&tar.Header{Typeflag: tar.TypeChar, Name: "out/mem", Devmajor: 1, Devminor: 1},
		&tar.Header{Typeflag: tar.TypeFifo, Name: "out/pipe"},
		&tar.Header{Typeflag: tar.TypeSymlink, Name: "out/link", Linkname: "/etc/shadow"},
		&tar.Header{Typeflag: tar.TypeLink, Name: "out/hard", Linkname: "../../abs"},
		&tar.Header{Typeflag: tar.TypeReg, Name: "out/" + strings.Repeat("d/", 3000) + "f"},
	), "/srv")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.out.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := names(t, &b), "srv/out/ srv/etc/passwd srv/abs srv/out/link>/etc/shadow srv/out/hard>srv/abs"; got != want {
		t.Errorf("kept\n%s, want\n%s", got, want)
	}

	few := &artifacts{out: tar.NewWriter(io.Discard), bytes: artifactBytesMax, files: 2}
	if err := few.add(hostile(t, &tar.Header{Name: "a"}, &tar.Header{Name: "b"}, &tar.Header{Name: "c"}), "/"); !errors.Is(err, errArtifactFiles) {
		t.Errorf("too many files: %v", err)
	}
	small := &artifacts{out: tar.NewWriter(io.Discard), bytes: 4, files: 2}
	if err := small.add(hostile(t, &tar.Header{Name: "a", Size: 5}), "/"); !errors.Is(err, errArtifactBytes) {
		t.Errorf("too many bytes: %v", err)
	}
	if err := small.add(strings.NewReader(strings.Repeat("not a tar archive ", 100)), "/"); err == nil {
		t.Error("no archive is taken for one")
	}
	whole, _ := io.ReadAll(hostile(t, &tar.Header{Name: "a", Size: 2000}))
	cut := &artifacts{out: tar.NewWriter(io.Discard), bytes: artifactBytesMax, files: 2}
	if err := cut.add(bytes.NewReader(whole[:1000]), "/"); err == nil || !cut.broken {
		t.Errorf("a cut archive is taken: %v", err)
	}
}

// TestArtifactsAreFilesThemselves: a link in the place of an archive leads nowhere.
func TestArtifactsAreFilesThemselves(t *testing.T) {
	dir := t.TempDir()
	j, err := openJournal(filepath.Join(dir, "vms"))
	if err != nil {
		t.Fatal(err)
	}
	o, err := openOutputs(filepath.Join(dir, "outputs"))
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{journal: j, outputs: o}
	secret, of := filepath.Join(dir, "secret"), filepath.Join(o.dir, "alloc-1")
	if err := errors.Join(os.WriteFile(secret, []byte("secret"), 0o600), os.Mkdir(of, 0o700)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{artifactsFile, artifactNotes} {
		if err := os.Symlink(secret, filepath.Join(of, name)); err != nil {
			t.Fatal(err)
		}
	}
	if archive, notes, err := a.Artifacts("alloc-1"); err == nil || archive != nil || len(notes) > 0 {
		t.Errorf("a link gives %v, %q, %v", archive, notes, err)
	}
	if err := os.Remove(filepath.Join(of, artifactsFile)); err != nil {
		t.Fatal(err)
	}
	if _, notes, err := a.Artifacts("alloc-1"); !problem.Is(err, problem.NotFound) || len(notes) > 0 {
		t.Errorf("a link to notes gives %q, %v", notes, err)
	}
}
