package image

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/blixard/blixard/internal/problem"
)

func TestAddresses(t *testing.T) {
	for address, want := range map[string]string{
		"8.8.8.8": "", "2606:4700::1": "",
		"169.254.169.254": "always", "169.254.0.1": "always", "fe80::1": "always", "fd00:ec2::254": "always", "::ffff:169.254.169.254": "always",
		"64:ff9b::a9fe:a9fe": "always", "0.0.0.0": "always", "::": "always", "224.0.0.1": "always", "0.1.2.3": "always", "ff02::1": "always",
		"127.0.0.1": "named", "127.9.9.9": "named", "::1": "named", "::ffff:127.0.0.1": "named",
		"10.0.0.1": "private", "172.16.1.1": "private", "192.168.1.1": "private", "fc00::1": "private", "100.64.1.1": "private", "64:ff9b::a00:1": "private",
	} {
		ip := netip.MustParseAddr(address)
		got := map[string]bool{}
		for _, allow := range []bool{false, true} {
			for _, named := range []bool{false, true} {
				p := &addressPolicy{allowPrivate: allow}
				got[fmt.Sprint(allow, named)] = p.refuse(ip, named) == ""
			}
		}
		expect := map[string]bool{"false false": want == "", "false true": want != "always", "true false": want == "" || want == "private", "true true": want != "always"}
		for k, v := range expect {
			if got[k] != v {
				t.Errorf("%s: allowPrivate, named = %s: reached is %v", address, k, got[k])
			}
		}
	}
}

// A name that leads to this host is refused after it was resolved, unless the
// operator wrote it down.
func TestNamesThatLeadHome(t *testing.T) {
	h := newHub(t)
	_, port, _ := strings.Cut(h.host, ":")
	p := &addressPolicy{named: map[string]bool{}}
	if c, err := p.dial(t.Context(), "tcp", "localhost:"+port); err == nil || !strings.Contains(err.Error(), "this very host") {
		t.Errorf("%v %v", c, err)
	}
	p.name("localhost:" + port)
	c, err := p.dial(t.Context(), "tcp", "localhost:"+port)
	if err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
	p.name("registry.example.com")
	p.name("127.0.0.1")
	p.name("[::1]:5000")
	p.name("10.0.0.1")
	var named []string
	for n := range p.named {
		named = append(named, n)
	}
	slices.Sort(named)
	if got := strings.Join(named, " "); got != "10.0.0.1:443 127.0.0.1:443 127.0.0.1:80 [::1]:5000 localhost:"+port {
		t.Error(got)
	}
	if _, err := newStore(t, nil).Pull(t.Context(), "169.254.169.254/a/b:c", PullOptions{}); !problem.HasCode(err, "image.address") {
		t.Error(err)
	}
	if _, err := newStore(t, nil).Pull(t.Context(), "10.255.255.1:80/a/b@sha256:xyz", PullOptions{}); !problem.HasCode(err, "image.name") {
		t.Error(err)
	}
}

// A registry with a certificate of its own authority.
func TestOwnAuthority(t *testing.T) {
	h := newHub(t)
	_, digest := h.push(t, "a/b:c", sample(t, 100))
	secure := newTLSHub(t, h)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, secure.pem, 0o600); err != nil {
		t.Fatal(err)
	}
	ref := secure.host + "/a/b:c"
	if _, err := newStore(t, nil).Pull(t.Context(), ref, PullOptions{}); !problem.HasCode(err, "image.registry_unreachable") {
		t.Error(err)
	}
	if img, err := newStore(t, func(c *Config) { c.CAFiles = []string{ca} }).Pull(t.Context(), ref, PullOptions{}); err != nil || img.GetDigest() != digest {
		t.Errorf("%v, %v", img, err)
	}
	if _, err := Open(Config{Dir: t.TempDir(), CAFiles: []string{ca + "x"}}); !problem.HasCode(err, "image.ca_file") {
		t.Error(err)
	}
}

func TestReferences(t *testing.T) {
	for text, want := range map[string]string{
		"nginx": "docker.io/library/nginx:latest", "nginx:1.27": "docker.io/library/nginx:1.27", "docker.io/a/b": "docker.io/a/b:latest",
		"quay.io/x/y:z": "quay.io/x/y:z", "localhost:5000/a": "localhost:5000/a:latest",
		"a@sha256:" + strings.Repeat("a", 64): "docker.io/library/a@sha256:" + strings.Repeat("a", 64),
	} {
		if ref, err := parseReference(text); err != nil || fullName(ref) != want {
			t.Errorf("%s: %v, %v", text, ref, err)
		}
	}
	for _, text := range []string{"", "UPPER", "a b", "a:b:c", "../x", "a/../b", "a/./b", "a//b", "x.y:port/a", "a\n", "a@sha256:12", "-x", strings.Repeat("a", 513), "http://x/y", "a\x00b"} {
		if _, err := parseReference(text); !problem.HasCode(err, "image.name") {
			t.Errorf("%q: %v", text, err)
		}
		if _, err := newStore(t, nil).Pull(t.Context(), text, PullOptions{}); !problem.HasCode(err, "image.name") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
