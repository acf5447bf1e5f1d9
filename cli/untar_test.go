package cli

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// archive makes a tar stream of headers; a file's content is its name.
func archive(t *testing.T, headers ...tar.Header) *bytes.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(h.Name))
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := w.Write([]byte(h.Name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(b.Bytes())
}

// tree lists what is below a directory, with contents and targets.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			rel += "/"
		case info.Mode()&fs.ModeSymlink != 0:
			to, _ := os.Readlink(p)
			rel += " -> " + to
		default:
			b, _ := os.ReadFile(p)
			rel += " " + info.Mode().String() + " " + string(b)
		}
		out = append(out, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, "\n")
}

func TestUnpack(t *testing.T) {
	const reg, dir, sym, hard = tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink
	for _, tc := range []struct {
		name, as string
		headers  []tar.Header
		want     string
	}{
		{"as it is", "", []tar.Header{{Name: "d/", Typeflag: dir, Mode: 0o755}, {Name: "d/f", Typeflag: reg, Mode: 0o640}, {Name: "d/l", Typeflag: sym, Linkname: "f"}}, "d/\nd/f -rw-r----- d/f\nd/l -> f"},
		{"under another name", "x", []tar.Header{{Name: "d/", Typeflag: dir, Mode: 0o755}, {Name: "d/f", Typeflag: reg, Mode: 0o600}, {Name: "d/h", Typeflag: hard, Linkname: "d/f"}}, "x/\nx/f -rw------- d/f\nx/h -rw------- d/f"},
		{"one file under another name", "x", []tar.Header{{Name: "f", Typeflag: reg, Mode: 0o600}}, "x -rw------- f"},
		{"upwards and absolute", "", []tar.Header{{Name: "../../up", Typeflag: reg, Mode: 0o600}, {Name: "/abs", Typeflag: reg, Mode: 0o600}}, "abs -rw------- /abs\nup -rw------- ../../up"},
		{"set-user-id and devices", "", []tar.Header{{Name: "s", Typeflag: reg, Mode: 0o4755}, {Name: "n", Typeflag: tar.TypeChar}, {Name: "p", Typeflag: tar.TypeFifo}}, "s -rwxr-xr-x s"},
		{"a file in place of another", "", []tar.Header{{Name: "f", Typeflag: reg, Mode: 0o600}, {Name: "f", Typeflag: reg, Mode: 0o644}}, "f -rw-r--r-- f"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			to := t.TempDir()
			if err := unpack(archive(t, tc.headers...), to, tc.as); err != nil {
				t.Fatal(err)
			}
			if got := tree(t, to); got != tc.want {
				t.Errorf("got\n%s\nwant\n%s", got, tc.want)
			}
		})
	}
}

// Nothing that a guest sends is written outside of the directory.
func TestUnpackStaysInside(t *testing.T) {
	const reg, sym, hard = tar.TypeReg, tar.TypeSymlink, tar.TypeLink
	for name, headers := range map[string][]tar.Header{
		"through a link":           {{Name: "l", Typeflag: sym, Linkname: ".."}, {Name: "l/canary", Typeflag: reg, Mode: 0o600}},
		"through an absolute link": {{Name: "l", Typeflag: sym, Linkname: "/"}, {Name: "l/tmp/canary", Typeflag: reg, Mode: 0o600}},
		"through a linked file":    {{Name: "l", Typeflag: sym, Linkname: "../canary"}, {Name: "l/x", Typeflag: reg, Mode: 0o600}},
		"a hard link to outside":   {{Name: "l", Typeflag: sym, Linkname: ".."}, {Name: "h", Typeflag: hard, Linkname: "l/canary"}, {Name: "h", Typeflag: reg}},
		"renamed":                  {{Name: "a/../../b/l", Typeflag: sym, Linkname: "../.."}, {Name: "b/l/canary", Typeflag: reg, Mode: 0o600}},
	} {
		t.Run(name, func(t *testing.T) {
			outer := t.TempDir()
			canary := filepath.Join(outer, "canary")
			if err := os.WriteFile(canary, []byte("sings"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(outer, "in"), 0o700); err != nil {
				t.Fatal(err)
			}
			err := unpack(archive(t, headers...), filepath.Join(outer, "in"), "")
			b, readErr := os.ReadFile(canary)
			if readErr != nil || string(b) != "sings" {
				t.Fatalf("the canary is %q, %v, after %v", b, readErr, err)
			}
			entries, _ := os.ReadDir(outer)
			if len(entries) != 2 {
				t.Fatalf("there is more outside: %v", entries)
			}
		})
	}
	cut := archive(t, tar.Header{Name: "f", Typeflag: reg, Mode: 0o600})
	b := make([]byte, 512)
	if _, err := cut.Read(b); err != nil {
		t.Fatal(err)
	}
	if err := unpack(bytes.NewReader(b), t.TempDir(), ""); err == nil {
		t.Error("a stream that was cut counts as whole")
	}
}

func TestSpecFlags(t *testing.T) {
	ports, err := parsePorts([]string{"8080:80", "5353:53/udp", "9000-9002:90-92"})
	if err != nil || len(ports) != 5 || ports[1].GetProtocol().String() != "udp" || ports[4].GetHostPort() != 9002 || ports[4].GetGuestPort() != 92 {
		t.Errorf("%v, %v", ports, err)
	}
	for _, bad := range []string{"80", ":80", "0:80", "80:70000", "1-3:1-2", "80:80/sctp", "1-100:1-100", "a:b"} {
		if p, err := parsePorts([]string{bad}); err == nil {
			t.Errorf("-p %s is %v", bad, p)
		}
	}
	volumes, err := parseVolumes([]string{"data:/srv", "d2:/x/:ro"})
	if err != nil || volumes[0].GetReadOnly() || !volumes[1].GetReadOnly() || volumes[1].GetPath() != "/x" {
		t.Errorf("%v, %v", volumes, err)
	}
	for _, bad := range []string{"data", "data:srv", "/srv:/srv", "data:/srv:rx", "./d:/d"} {
		if v, err := parseVolumes([]string{bad}); err == nil {
			t.Errorf("-v %s is %v", bad, v)
		}
	}
	for text, want := range map[string]uint32{"": 0, "TERM": 15, "sigquit": 3, "9": 9} {
		if n, err := parseSignal(text); err != nil || n != want {
			t.Errorf("%s: %d, %v", text, n, err)
		}
	}
	for _, bad := range []string{"NOPE", "0", "65", "-1"} {
		if n, err := parseSignal(bad); err == nil {
			t.Errorf("signal %s is %d", bad, n)
		}
	}
}

func TestNetworkRules(t *testing.T) {
	for _, text := range []string{"allow", "deny", "allow:192.0.2.0/24", "allow:192.0.2.0/24:tcp", "deny:10.0.0.0/8:udp:53", "allow:tcp:8000-8099", "allow:any:53", "deny:[2001:db8::/32]", "allow:[2001:db8::/32]:tcp:22"} {
		r, err := parseRule("--egress", text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got := ruleText(r); got != text {
			t.Errorf("%s is told as %s", text, got)
		}
	}
	for _, bad := range []string{"allow:8000", "allow:tcp:x", "allow:[2001:db8::/32", "allow:[2001:db8::/32]tcp", "allow:icmp", "allow:tcp:9-1"} {
		if r, err := parseRule("--egress", bad); err == nil {
			t.Errorf("%s is %v", bad, r)
		}
	}
}

func TestHealthFlags(t *testing.T) {
	if c, err := (&healthFlags{}).check(); c != nil || err != nil {
		t.Errorf("no flags: %v, %v", c, err)
	}
	c, err := (&healthFlags{http: "8080/ready?x=/y", retries: 2}).check()
	if err != nil || c.GetHttp().GetPort() != 8080 || c.GetHttp().GetPath() != "/ready?x=/y" || c.GetRetries() != 2 {
		t.Errorf("%v, %v", c, err)
	}
	for name, h := range map[string]*healthFlags{
		"two": {cmd: "true", tcp: 80}, "nothing to check": {retries: 2}, "no port": {http: "x"}, "port 0": {http: "0/x"},
	} {
		if c, err := h.check(); err == nil {
			t.Errorf("%s: %v", name, c)
		}
	}
}
