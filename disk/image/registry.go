package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/blixard/blixard/internal/problem"
)

// repository is one at one registry or mirror.
type repository struct {
	host name.Registry
	repo string
	auth authn.Authenticator
	base http.RoundTripper
	wait time.Duration

	mu     sync.Mutex
	client *http.Client // once it is known how to authenticate
}

// connect finds out how to authenticate, once.
func (r *repository) connect(ctx context.Context) (*http.Client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.client != nil {
		return r.client, nil
	}
	t, err := transport.NewWithContext(ctx, r.host, r.auth, r.base, []string{"repository:" + r.repo + ":pull"})
	if err != nil {
		return nil, err
	}
	r.client = &http.Client{Transport: t, CheckRedirect: checkRedirect}
	return r.client, nil
}

// scheme is https but for this very host. go-containerregistry would also speak plain
// HTTP to all private addresses.
func (r *repository) scheme() string {
	host, _, err := net.SplitHostPort(r.host.RegistryStr())
	if err != nil {
		host = r.host.RegistryStr()
	}
	if isLoopbackName(host) {
		return r.host.Scheme()
	}
	return "https"
}

// get asks for a path of the repository.
func (r *repository) get(ctx context.Context, path string, header http.Header) (*http.Response, error) {
	client, err := r.connect(ctx)
	if err != nil {
		return nil, r.explain(ctx, err)
	}
	address := r.scheme() + "://" + r.host.RegistryStr() + "/v2/" + r.repo + "/" + path
	req, err := http.NewRequestWithContext(context.WithValue(ctx, bulk{}, true), http.MethodGet, address, nil)
	if err != nil {
		return nil, permanent{err}
	}
	req.Header = header
	resp, err := client.Do(req)
	if err != nil {
		return nil, r.explain(ctx, err)
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		_ = resp.Body.Close()
		return nil, r.explain(ctx, err)
	}
	return resp, nil
}

// errRange is the answer of a registry that does not send a part of a file.
var errRange = errors.New("no such range")

// explain makes an error of the registry a problem. It is permanent unless another
// attempt may help.
func (r *repository) explain(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var address *errAddress
	if errors.As(err, &address) {
		return permanent{refusedAddress(address)}
	}
	host := hubName(r.host.RegistryStr())
	if errors.Is(err, errRedirects) {
		return permanent{problem.New(problem.Unavailable, "image.registry_unreachable", "the registry %s sends in circles: more than %d redirects", host, redirectsMax).
			WithHint("see what is wrong with the registry")}
	}
	var answer *transport.Error
	if !errors.As(err, &answer) {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // the address may hold a signature
		}
		return unreachable("the registry %s is not reached", host).WithCause(err)
	}
	switch answer.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return permanent{problem.New(problem.Denied, "image.unauthorized", "the registry %s does not give %s to these credentials", host, r.repo).
			WithHint("see whether the name is right, and give credentials that may pull it")}
	case http.StatusNotFound:
		return permanent{problem.New(problem.NotFound, "image.not_found", "the registry %s has it not in %s", host, r.repo).
			WithHint("see whether the name and the tag are right")}
	case http.StatusTooManyRequests:
		return unreachable("the registry %s wants fewer requests", host).
			WithHint("wait, or give credentials, or name a mirror in the node's configuration")
	}
	u := unreachable("the registry %s answers with status %d", host, answer.StatusCode)
	if answer.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		u = u.WithCause(errRange)
	}
	if answer.StatusCode < 500 {
		return permanent{u}
	}
	return u
}

// retry does what f does until it succeeds or another attempt is of no use.
func retry(ctx context.Context, wait time.Duration, f func() error) error {
	for n := 1; ; n++ {
		err := f()
		var fixed permanent
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.As(err, &fixed):
			return fixed.err
		case n == attemptsMax:
			return err
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
		wait *= 2
	}
}

// document gets a small file whole, with its type and its digest.
func (r *repository) document(ctx context.Context, path, accept string, bytesMax int64) (raw []byte, contentType string, err error) {
	err = retry(ctx, r.wait, func() error {
		ctx, cancel := context.WithTimeout(ctx, headerTimeout+stallTimeout)
		defer cancel()
		resp, err := r.get(ctx, path, http.Header{"Accept": {accept}})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if raw, err = io.ReadAll(io.LimitReader(resp.Body, bytesMax+1)); err != nil {
			return unreachable("the registry %s breaks off", hubName(r.host.RegistryStr())).WithCause(err)
		}
		if int64(len(raw)) > bytesMax {
			return permanent{tooLarge("%s has more than %d bytes", path, bytesMax)}
		}
		contentType = resp.Header.Get("Content-Type")
		if want := resp.Header.Get("Docker-Content-Digest"); strings.HasPrefix(path, "manifests/") && digestPattern.MatchString(want) {
			return wrongDigest("the manifest", raw, want)
		}
		return nil
	})
	return raw, contentType, err
}

func sha256Of(raw []byte) string {
	sum := sha256.Sum256(raw)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// wrongDigest gives a permanent error unless raw has the digest.
func wrongDigest(what string, raw []byte, want string) error {
	if got := sha256Of(raw); got != want {
		return permanent{digestMismatch(what, got, want)}
	}
	return nil
}

// blob gets a layer of that size from an offset on. A registry that cannot do so
// gives it from its beginning.
func (r *repository) blob(ctx context.Context, digest string, size, offset int64) (io.ReadCloser, int64, error) {
	header := http.Header{}
	if offset > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", offset, size-1))
	}
	resp, err := r.get(ctx, "blobs/"+digest, header)
	if offset > 0 && errors.Is(err, errRange) {
		resp, err = r.get(ctx, "blobs/"+digest, http.Header{})
	}
	if err != nil {
		return nil, 0, err
	}
	if resp.StatusCode != http.StatusPartialContent {
		return resp.Body, 0, nil
	}
	start := int64(-1)
	if from, ok := strings.CutPrefix(resp.Header.Get("Content-Range"), "bytes "); ok {
		if n, err := strconv.ParseInt(from[:max(0, strings.IndexByte(from, '-'))], 10, 64); err == nil {
			start = n
		}
	}
	if start != offset {
		_ = resp.Body.Close()
		return nil, 0, fmt.Errorf("asked from byte %d on, the registry sends from %d on", offset, start)
	}
	return resp.Body, start, nil
}
