package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// from fetches an image from another store, a number of bytes a time.
func from(s *Store, digest string, atMost int64) func(context.Context, uint64) (io.ReadCloser, error) {
	return func(ctx context.Context, offset uint64) (io.ReadCloser, error) {
		var b bytes.Buffer
		if err := s.Export(ctx, digest, offset, &b); err != nil {
			return nil, err
		}
		return io.NopCloser(io.LimitReader(&b, atMost)), nil
	}
}

func TestReceive(t *testing.T) {
	a := newStore(t, nil)
	h := newHub(t)
	ref, digest := h.push(t, "a/b:c", imageOf(t, nil, layerTar(t, file("f", random(3<<20)))))
	img, err := a.Pull(t.Context(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	img.NodeIds, img.ModifyIndex = []string{"n1"}, 7
	for _, piece := range []int64{1 << 40, 1<<20 + 5} {
		b := newStore(t, nil)
		var last *blixardv1.PullImageResponse
		if err := b.Receive(t.Context(), img, from(a, digest, piece), func(r *blixardv1.PullImageResponse) { last = r }); err != nil {
			t.Fatal(err)
		}
		if last.GetPhase() != phaseStoring {
			t.Errorf("%v", last)
		}
		got, path, err := b.Get(digest)
		if err != nil || got.GetDiskDigest() != img.GetDiskDigest() || got.GetName() != ref || len(got.GetNodeIds()) != 0 {
			t.Fatalf("%v, %v", got, err)
		}
		if _, err := os.Stat(path); err != nil || len(left(t, b)) != 0 {
			t.Errorf("%v, %v", err, left(t, b))
		}
		before := b.budget.used
		if b = reopen(t, b.c); b.budget.used != before || before < 3<<20 {
			t.Errorf("%d bytes counted, then %d", before, b.budget.used)
		}
		// Once there, nobody is asked.
		if err := b.Receive(t.Context(), img, nil, nil); err != nil {
			t.Error(err)
		}
	}
	if err := a.Export(t.Context(), digest, img.GetDiskBytes()+1, io.Discard); !problem.HasCode(err, "image.offset") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := a.Export(ctx, digest, 0, io.Discard); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A copy that was broken off goes on in the next process.
func TestReceiveGoesOn(t *testing.T) {
	a := newStore(t, nil)
	disk := append([]byte(random(3<<20)), make([]byte, 8<<20)...)
	copy(disk, ext4Of(t, 8, "x"))
	img, err := a.ImportDisk(t.Context(), bytes.NewReader(disk), "d", FormatRaw)
	if err != nil {
		t.Fatal(err)
	}
	b := newStore(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	fetch := func(ctx context.Context, offset uint64) (io.ReadCloser, error) {
		if offset > 0 {
			cancel()
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return from(a, img.GetDigest(), 5<<20)(ctx, offset)
	}
	if err := b.Receive(ctx, img, fetch, nil); err == nil {
		t.Fatal("it ended well")
	}
	b = reopen(t, b.c)
	first := uint64(0)
	fetch = func(ctx context.Context, offset uint64) (io.ReadCloser, error) {
		if first == 0 {
			first = offset
		}
		return from(a, img.GetDigest(), 1<<40)(ctx, offset)
	}
	if err := b.Receive(t.Context(), img, fetch, nil); err != nil || first != 5<<20 {
		t.Errorf("%v, from %d on", err, first)
	}
}

func TestReceiveRefused(t *testing.T) {
	a := newStore(t, nil)
	img := imported(t, a, "a")
	good := from(a, img.GetDigest(), 1<<40)
	raw, err := os.ReadFile(a.hexPath(img.GetDigest()) + "/" + diskFile)
	if err != nil {
		t.Fatal(err)
	}
	serve := func(b []byte) func(context.Context, uint64) (io.ReadCloser, error) {
		return func(_ context.Context, offset uint64) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(b[min(offset, uint64(len(b))):])), nil
		}
	}
	flipped := bytes.Clone(raw)
	flipped[len(raw)/3] ^= 1
	changed := func(f func(i *blixardv1.Image)) *blixardv1.Image {
		i := proto.CloneOf(img)
		f(i)
		return i
	}
	for name, c := range map[string]struct {
		img   *blixardv1.Image
		fetch func(context.Context, uint64) (io.ReadCloser, error)
		code  string
	}{
		"flipped bit": {img, serve(flipped), "image.digest_mismatch"},
		"too short":   {img, serve(raw[:len(raw)-1]), "image.registry_unreachable"},
		"longer":      {changed(func(i *blixardv1.Image) { i.DiskBytes += 4096 }), serve(append(bytes.Clone(raw), make([]byte, 4096)...)), "image.digest_mismatch"},
		"not there": {img, func(context.Context, uint64) (io.ReadCloser, error) {
			return nil, problem.New(problem.NotFound, "image.not_found", "x")
		}, "image.not_found"},
		"never":        {img, func(context.Context, uint64) (io.ReadCloser, error) { return nil, errors.New("no route") }, "image.registry_unreachable"},
		"no digest":    {changed(func(i *blixardv1.Image) { i.Digest = "sha256:../../x" }), good, "image.invalid"},
		"no disk":      {changed(func(i *blixardv1.Image) { i.DiskDigest = "" }), good, "image.invalid"},
		"no bytes":     {changed(func(i *blixardv1.Image) { i.DiskBytes = 0 }), good, "image.invalid"},
		"many bytes":   {changed(func(i *blixardv1.Image) { i.DiskBytes = 1 << 60 }), good, "image.invalid"},
		"odd fs":       {changed(func(i *blixardv1.Image) { i.FsType = "xfs" }), good, "image.invalid"},
		"odd source":   {changed(func(i *blixardv1.Image) { i.Source = "" }), good, "image.invalid"},
		"no config":    {changed(func(i *blixardv1.Image) { i.Config = nil }), good, "image.invalid"},
		"architecture": {changed(func(i *blixardv1.Image) { i.Config.Architecture = "arm64" }), good, "image.invalid"},
		"long name":    {changed(func(i *blixardv1.Image) { i.Name = strings.Repeat("x", 1000) }), good, "image.invalid"},
		"odd env":      {changed(func(i *blixardv1.Image) { i.Config.Env = []string{"x"} }), good, "image.config"},
		"odd signal":   {changed(func(i *blixardv1.Image) { i.Config.StopSignal = 99 }), good, "image.config"},
	} {
		b := newStore(t, nil)
		if err := b.Receive(t.Context(), c.img, c.fetch, nil); !problem.HasCode(err, c.code) {
			t.Errorf("%s: %v", name, err)
		}
		if len(b.List()) != 0 {
			t.Errorf("%s: it is there", name)
		}
	}
	b := newStore(t, func(c *Config) { c.BudgetBytes = 1000 })
	if err := b.Receive(t.Context(), img, good, nil); !problem.HasCode(err, "image.budget") {
		t.Error(err)
	}
}
