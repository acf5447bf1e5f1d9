package debiantest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Package is what to make a package file of.
type Package struct {
	Name, Version string
	// Depends is the control field; empty leaves it out.
	Depends string
	// Files are regular files and their content, by paths without a slash in front. All are executable.
	Files map[string][]byte
}

// Repository is a running repository. It is safe for concurrent use.
type Repository struct {
	server *httptest.Server

	mu    sync.Mutex
	index bytes.Buffer
	files map[string][]byte
	// requests counts what was asked for, by path.
	requests map[string]int
	// status is the host's list of installed packages.
	status string
}

// New starts a repository and makes apt, run by this test's process, see it and nothing else. Of each package
// the host has a newer version installed, which is in no repository. It ends with
// the test. A test that uses it can't be parallel to others, since it sets the environment.
func New(t testing.TB) *Repository {
	t.Helper()
	r := &Repository{files: map[string][]byte{}, requests: map[string]int{}}
	r.server = httptest.NewServer(r)
	t.Cleanup(r.server.Close)
	dir := t.TempDir()
	for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	r.status = write("status", "")
	lines := []string{
		`Dir::State "` + filepath.Join(dir, "state") + `";`,
		`Dir::State::status "` + r.status + `";`,
		`Dir::Cache "` + filepath.Join(dir, "cache") + `";`,
		`Dir::Etc::main "/dev/null";`,
		`Dir::Etc::parts "/dev/null";`,
		`Dir::Etc::sourcelist "` + write("sources.list", "deb [trusted=yes] "+r.server.URL+" ./\n") + `";`,
		`Dir::Etc::sourceparts "/dev/null";`,
		`Acquire::Languages "none";`,
		`Acquire::Retries "0";`,
	}
	t.Setenv("APT_CONFIG", write("apt.conf", strings.Join(lines, "\n")+"\n"))
	for _, name := range []string{"http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"} {
		t.Setenv(name, "")
	}
	return r
}

// ServeHTTP implements http.Handler.
func (r *Repository) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := strings.TrimPrefix(path.Clean(req.URL.Path), "/")
	r.requests[name]++
	if name == "Packages" {
		_, _ = w.Write(r.index.Bytes())
		return
	}
	content, ok := r.files[name]
	if !ok {
		http.NotFound(w, req)
		return
	}
	_, _ = w.Write(content)
}

// Add makes a package and puts it into the index. It gives the file.
func (r *Repository) Add(t testing.TB, p Package) []byte {
	t.Helper()
	var files []tar.Header
	var contents [][]byte
	for _, name := range sortedNames(p.Files) {
		files = append(files, tar.Header{Name: "./" + name, Mode: 0o755, Typeflag: tar.TypeReg})
		contents = append(contents, p.Files[name])
	}
	deb := Deb(t, p, files, contents)
	r.AddFile(p, deb)
	return deb
}

// AddFile puts a package into the index whose file is deb, whatever that is.
func (r *Repository) AddFile(p Package, deb []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := "pool/" + p.Name + "_" + strings.ReplaceAll(p.Version, ":", "-") + ".deb"
	r.files[name] = deb
	installed, err := os.OpenFile(r.status, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		panic(err)
	}
	_, _ = fmt.Fprintf(installed, "Package: %s\nStatus: install ok installed\nVersion: 1000:1\nArchitecture: all\nMaintainer: tests\nDescription: for tests\n\n", p.Name)
	_ = installed.Close()
	fmt.Fprintf(&r.index, "%sFilename: ./%s\nSize: %d\nSHA256: %x\n\n", control(p), name, len(deb), sha256.Sum256(deb))
}

// Replace serves other bytes for a package than its index tells.
func (r *Repository) Replace(p Package, deb []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files["pool/"+p.Name+"_"+strings.ReplaceAll(p.Version, ":", "-")+".deb"] = deb
}

// Downloads counts how often files of the package were asked for.
func (r *Repository) Downloads(name string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for file, count := range r.requests {
		if strings.HasPrefix(file, "pool/"+name+"_") {
			n += count
		}
	}
	return n
}

// Stop takes the repository off the network.
func (r *Repository) Stop() { r.server.Close() }

func control(p Package) string {
	text := "Package: " + p.Name + "\nVersion: " + p.Version + "\nArchitecture: all\nMaintainer: tests\nDescription: for tests\n"
	if p.Depends != "" {
		text += "Depends: " + p.Depends + "\n"
	}
	return text
}

// Deb makes a package file whose data archive has the headers and contents as they are: hostile ones too.
func Deb(t testing.TB, p Package, headers []tar.Header, contents [][]byte) []byte {
	t.Helper()
	text := []byte(control(p))
	return Archive([]Member{
		{"debian-binary", []byte("2.0\n")},
		{"control.tar.gz", packed(t, []tar.Header{{Name: "./control", Mode: 0o644, Typeflag: tar.TypeReg}}, [][]byte{text})},
		{"data.tar.gz", packed(t, headers, contents)},
	})
}

// Member is a file in an ar archive.
type Member struct {
	Name    string
	Content []byte
}

// Archive makes an ar archive, the container of package files.
func Archive(members []Member) []byte {
	var b bytes.Buffer
	b.WriteString("!<arch>\n")
	for _, m := range members {
		fmt.Fprintf(&b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.Name, 0, 0, 0, "100644", len(m.Content))
		b.Write(m.Content)
		if len(m.Content)%2 == 1 {
			b.WriteByte('\n')
		}
	}
	return b.Bytes()
}

// packed makes a tar archive compressed by gzip.
func packed(t testing.TB, headers []tar.Header, contents [][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write(Tar(t, headers, contents)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Tar makes a tar archive.
func Tar(t testing.TB, headers []tar.Header, contents [][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range headers {
		h := headers[i]
		h.Size = int64(len(contents[i]))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(contents[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func sortedNames(files map[string][]byte) []string {
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
