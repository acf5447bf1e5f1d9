package image

import (
	"bufio"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// Variables by which the test's program becomes a node that pulls.
const (
	crashDirEnv = "BLIXARD_TEST_IMAGE_DIR"
	crashRefEnv = "BLIXARD_TEST_IMAGE_REF"
)

// TestCrashedNode is the node: it pulls and tells of its phases. As a test of its own
// it shows that nothing is done without being asked to.
func TestCrashedNode(t *testing.T) {
	dir, ref := os.Getenv(crashDirEnv), os.Getenv(crashRefEnv)
	if dir == "" {
		return
	}
	s, err := Open(Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Pull(t.Context(), ref, PullOptions{Progress: func(r *blixardv1.PullImageResponse) {
		fmt.Println("phase", r.GetPhase())
	}})
	if err != nil {
		t.Fatal(err)
	}
}

// A node killed at any time of a pull: the next one finds nothing half-made, never
// uses anything that is not right, and brings the pull to its end.
func TestKilledWhilePulling(t *testing.T) {
	var layers [][]byte
	for n := range 4 {
		var entries []ent
		for k := range 300 {
			entries = append(entries, file(fmt.Sprintf("l%d/f%d", n, k), random(6000+k)))
		}
		layers = append(layers, layerTar(t, entries...))
	}
	img := imageOf(t, nil, layers...)
	h := newHub(t)
	ref, digest := h.push(t, "a/b:c", img)
	blobs := map[string][]byte{}
	for n := range layers {
		d, raw := blobOf(t, img, n)
		blobs["/v2/a/b/blobs/"+d] = raw
	}
	var hold atomic.Bool                                           // nothing comes after the half of a layer
	h.setFault(func(w http.ResponseWriter, r *http.Request) bool { // a slow line
		raw := blobs[r.URL.Path]
		if raw != nil {
			slowly(w, r, raw, hold.Load())
		}
		return raw != nil
	})
	want, err := newStore(t, nil).Pull(t.Context(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	whole := 0
	for n := range 14 {
		// Not before the phase, then a little later each time.
		phase := []string{phaseResolving, phaseDownloading, phaseBuilding, phaseStoring}[n%4]
		hold.Store(phase == phaseDownloading)
		runAndKill(t, dir, ref, phase, time.Duration(n/4)*7*time.Millisecond)
		hold.Store(false)
		s := reopen(t, Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
		for _, l := range left(t, s) {
			if strings.HasPrefix(l, tmpDir) {
				t.Errorf("kill %d left %s", n, l)
			}
		}
		switch got, path, err := s.Get(digest); {
		case problem.HasCode(err, "image.not_found"):
		case err != nil:
			t.Errorf("kill %d: %v", n, err)
		default:
			whole++
			raw, err := os.ReadFile(path)
			if err != nil || sha256Of(raw) != want.GetDiskDigest() || got.GetDiskDigest() != want.GetDiskDigest() {
				t.Errorf("kill %d: another disk: %v", n, err)
			}
			if err := s.Remove(digest); err != nil {
				t.Error(err)
			}
		}
	}
	got, err := reopen(t, Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)}).Pull(t.Context(), ref, PullOptions{})
	if err != nil || got.GetDiskDigest() != want.GetDiskDigest() {
		t.Errorf("%v, %v", got, err)
	}
	if h.count("bytes=") == 0 {
		t.Error("no download went on")
	}
	t.Logf("of 14 nodes killed, %d had the image whole", whole)
}

// slowly sends a blob in pieces.
func slowly(w http.ResponseWriter, r *http.Request, raw []byte, hold bool) {
	at := 0
	if from, ok := strings.CutPrefix(r.Header.Get("Range"), "bytes="); ok {
		_, _ = fmt.Sscanf(from, "%d", &at)
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(raw)-1, len(raw)))
		w.WriteHeader(http.StatusPartialContent)
	}
	for end := (at + len(raw)) / 2; at < len(raw); {
		if hold && at >= end {
			<-r.Context().Done()
			return
		}
		n := min(len(raw)-at, 256<<10)
		if _, err := w.Write(raw[at : at+n]); err != nil {
			return
		}
		w.(http.Flusher).Flush()
		at += n
		select {
		case <-time.After(3 * time.Millisecond):
		case <-r.Context().Done():
			return
		}
	}
}

// runAndKill runs a node and kills it so long after it told of a phase, if it does.
func runAndKill(t *testing.T, dir, ref, phase string, after time.Duration) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestCrashedNode$", "-test.v")
	cmd.Env = append(os.Environ(), crashDirEnv+"="+dir, crashRefEnv+"="+ref)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := false
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "phase "+phase) && !killed {
			killed = true
			<-time.After(after)
			if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
				break // it has ended
			}
		}
	}
	_ = cmd.Wait() // killed, or done
}
