package debian

import (
	"strings"
	"testing"

	"github.com/blixard/blixard/internal/problem"
)

var digest = strings.Repeat("0a", 32)

func TestParseURI(t *testing.T) {
	good := "'http://h/p_1%3a2-3_amd64.deb' p_1%3a2-3_amd64.deb 928188 SHA256:" + digest + "\n"
	p, err := parseURI("p", []byte("Reading lists...\n"+good))
	if want := (Package{Name: "p", Version: "1:2-3", SHA256: digest, Bytes: 928188}); err != nil || p != want {
		t.Errorf("%+v, %v", p, err)
	}
	for name, text := range map[string]string{
		"nothing":       "",
		"prose":         "E: Unable to locate package p\n",
		"another":       strings.Replace(good, " p_", " q_", 1),
		"no version":    strings.Replace(good, " p_1%3a2-3_", " p_", 1),
		"no size":       strings.Replace(good, "928188", "x", 1),
		"size zero":     strings.Replace(good, "928188", "0", 1),
		"too large":     strings.Replace(good, "928188", "99999999999", 1),
		"much larger":   strings.Replace(good, "928188", "99999999999999999999999", 1),
		"other digest":  strings.Replace(good, "SHA256:", "MD5Sum:", 1),
		"short digest":  strings.Replace(good, digest, digest[:10], 1),
		"bad escape":    strings.Replace(good, " p_1%3a2", " p_1%zz2", 1),
		"slash escaped": strings.Replace(good, " p_1%3a2", " p_1%2f2", 1),
		"zero escaped":  strings.Replace(good, " p_1%3a2", " p_1%002", 1),
	} {
		if p, err := parseURI("p", []byte(text)); !problem.HasCode(err, "debian.apt_output") {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
}

func FuzzParseURI(f *testing.F) {
	f.Add("p", []byte("'http://h/p_1%3a2-3_amd64.deb' p_1%3a2-3_amd64.deb 928188 SHA256:"+digest+"\n"))
	f.Add("p", []byte("'x' p_%2e%2e%2f_all.deb 1 SHA256:"+digest))
	f.Fuzz(func(t *testing.T, name string, text []byte) {
		p, err := parseURI(name, text)
		if err != nil {
			return
		}
		// All of it becomes part of a file's name in the cache.
		if p.Name != name || p.Bytes <= 0 || p.Bytes > packageBytesMax || len(p.SHA256) != 64 || strings.ContainsAny(p.Version, "/\x00") {
			t.Errorf("%+v", p)
		}
	})
}

func TestClip(t *testing.T) {
	if got := clip([]byte("  text \n")); got != "text" {
		t.Errorf("%q", got)
	}
	if got := clip([]byte(strings.Repeat("x", outputBytesMax) + "end")); len(got) != outputBytesMax || !strings.HasSuffix(got, "end") {
		t.Errorf("%d bytes", len(got))
	}
}
