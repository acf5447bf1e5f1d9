package auth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
	"weak"

	"pgregory.net/rapid"

	"github.com/blixard/blixard/internal/problem"
)

var testTime = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func testAuthority(t testing.TB, cluster string) *Authority {
	t.Helper()
	a, err := NewAuthority(cluster, testTime)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// issue gives a keypair that a signed at that time.
func issue(t testing.TB, a *Authority, id Identity, at time.Time) *Keypair {
	t.Helper()
	k, err := a.Issue(id, at)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func trust(a *Authority, k *Keypair) *Trust {
	return &Trust{
		ClusterID: "c1", Keypair: func() *Keypair { return k }, Now: func() time.Time { return testTime },
		Authorities: func() [][]byte { return [][]byte{a.Certificate()} },
	}
}

// handshake lets both ends meet and gives what each says.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error, state tls.ConnectionState) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	// A pipe has no buffer, so that two ends which both refuse would wait for each
	// other.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	b, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	a, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s, c := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		err := s.HandshakeContext(ctx)
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		_ = a.Close()
		done <- err
	}()
	clientErr = c.HandshakeContext(ctx)
	if clientErr == nil {
		_, clientErr = c.Read(make([]byte, 1)) // in TLS 1.3 the refusal comes after the handshake
	}
	_ = b.Close()
	serverErr = <-done
	return serverErr, clientErr, s.ConnectionState()
}

func TestHandshakes(t *testing.T) {
	ours, theirs := testAuthority(t, "c1"), testAuthority(t, "c2")
	impostor := testAuthority(t, "c1") // same name, other key
	node := func(a *Authority, name string) *Keypair {
		return issue(t, a, Identity{a.clusterID, RoleNode, name}, testTime)
	}
	server := trust(ours, node(ours, "node-a"))
	client := func(k *Keypair) *tls.Config { return trust(ours, k).ClientTLS("node-a") }
	month := 31 * 24 * time.Hour
	noCertificate := client(node(ours, "node-b"))
	noCertificate.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	old := client(node(ours, "node-b"))
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for name, tc := range map[string]struct {
		server *Trust
		client *tls.Config
		ok     bool
	}{
		"a member":              {server, client(node(ours, "node-b")), true},
		"a viewer":              {server, client(issue(t, ours, Identity{"c1", RoleViewer, "eve"}, testTime)), true},
		"nobody":                {server, noCertificate, true},
		"other cluster":         {server, client(node(theirs, "node-b")), false},
		"an impostor":           {server, client(node(impostor, "node-b")), false},
		"expired":               {server, client(issue(t, ours, Identity{"c1", RoleNode, "node-b"}, testTime.Add(-month))), false},
		"not yet valid":         {server, client(issue(t, ours, Identity{"c1", RoleNode, "node-b"}, testTime.Add(month))), false},
		"TLS 1.2":               {server, old, false},
		"server is another":     {trust(ours, node(ours, "node-x")), client(node(ours, "node-b")), false},
		"server is a viewer":    {trust(ours, issue(t, ours, Identity{"c1", RoleViewer, "node-a"}, testTime)), client(node(ours, "node-b")), false},
		"server is an impostor": {trust(impostor, node(impostor, "node-a")), client(node(ours, "node-b")), false},
		"server is expired":     {trust(ours, issue(t, ours, Identity{"c1", RoleNode, "node-a"}, testTime.Add(-month))), client(node(ours, "node-b")), false},
	} {
		t.Run(name, func(t *testing.T) {
			serverErr, clientErr, _ := handshake(t, tc.server.ServerTLS(), tc.client)
			if ok := serverErr == nil && clientErr == nil; ok != tc.ok {
				t.Errorf("server %v, client %v", serverErr, clientErr)
			}
		})
	}
}

func TestRemovedNodeIsRefused(t *testing.T) {
	a := testAuthority(t, "c1")
	server := trust(a, issue(t, a, Identity{"c1", RoleNode, "node-a"}, testTime))
	gone := errors.New("removed")
	server.Refused = func(i Identity) error {
		if i.Name == "node-b" {
			return gone
		}
		return nil
	}
	for name, ok := range map[string]bool{"node-b": false, "node-c": true} {
		client := trust(a, issue(t, a, Identity{"c1", RoleNode, name}, testTime))
		// Who calls is told why it is refused, with each call; who is called is not
		// spoken to.
		serverErr, _, state := handshake(t, server.ServerTLS(), client.ClientTLS(""))
		if serverErr != nil {
			t.Errorf("%s: %v", name, serverErr)
		}
		id, known, err := server.Caller(state)
		if known != ok || ok && (err != nil || id.Name != name || id.Actor() != "node:"+name) || !ok && !errors.Is(err, gone) {
			t.Errorf("%+v, %v, %v", id, known, err)
		}
		if _, clientErr, _ := handshake(t, client.ServerTLS(), server.ClientTLS(name)); ok != (clientErr == nil) {
			t.Errorf("called %s: %v", name, clientErr)
		}
	}
	if _, known, err := server.Caller(tls.ConnectionState{}); known || err != nil {
		t.Errorf("nobody is %v, %v", known, err)
	}
}

func TestPinnedHandshake(t *testing.T) {
	ours, theirs := testAuthority(t, "c1"), testAuthority(t, "c2")
	token, err := NewToken(ours.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	pinned := PinnedTLS(token.CAPin, func() time.Time { return testTime })
	for name, tc := range map[string]struct {
		server *Trust
		ok     bool
	}{
		"the token's cluster": {trust(ours, issue(t, ours, Identity{"c1", RoleNode, "node-a"}, testTime)), true},
		"another cluster":     {trust(theirs, issue(t, theirs, Identity{"c2", RoleNode, "node-a"}, testTime)), false},
		"a viewer":            {trust(ours, issue(t, ours, Identity{"c1", RoleViewer, "node-a"}, testTime)), false},
		// It shows our authority, which signed nothing of it.
		"a liar": {trust(ours, issue(t, theirs, Identity{"c2", RoleNode, "node-a"}, testTime)), false},
	} {
		t.Run(name, func(t *testing.T) {
			_, clientErr, _ := handshake(t, tc.server.ServerTLS(), pinned)
			if tc.ok != (clientErr == nil) {
				t.Errorf("%v", clientErr)
			}
		})
	}
}

func TestSealedAuthority(t *testing.T) {
	a, secret := testAuthority(t, "c1"), NewSecret()
	sealed, err := a.Seal(secret)
	if err != nil {
		t.Fatal(err)
	}
	b, err := OpenAuthority("c1", a.Certificate(), sealed, secret)
	if err != nil {
		t.Fatal(err)
	}
	issue(t, b, Identity{"c1", RoleOperator, "ada"}, testTime)
	other := testAuthority(t, "c1")
	flipped := append([]byte{}, sealed...)
	flipped[len(flipped)-1] ^= 1
	for name, try := range map[string]func() (*Authority, error){
		"other secret":      func() (*Authority, error) { return OpenAuthority("c1", a.Certificate(), sealed, NewSecret()) },
		"other cluster":     func() (*Authority, error) { return OpenAuthority("c2", a.Certificate(), sealed, secret) },
		"other certificate": func() (*Authority, error) { return OpenAuthority("c1", other.Certificate(), sealed, secret) },
		"damaged":           func() (*Authority, error) { return OpenAuthority("c1", a.Certificate(), flipped, secret) },
	} {
		if _, err := try(); !problem.HasCode(err, "auth.sealed") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := a.Seal([]byte("short")); !problem.HasCode(err, "auth.secret") {
		t.Errorf("%v", err)
	}
	if _, err := OpenAuthority("c1", []byte("x"), sealed, secret); !problem.HasCode(err, "auth.certificate") {
		t.Errorf("%v", err)
	}
}

func TestSign(t *testing.T) {
	a := testAuthority(t, "c1")
	k, err := NewKeypair()
	if err != nil {
		t.Fatal(err)
	}
	request, err := k.SigningRequest()
	if err != nil {
		t.Fatal(err)
	}
	bad := append([]byte{}, request...)
	bad[len(bad)-1] ^= 1
	for name, tc := range map[string]struct {
		request []byte
		id      Identity
		code    string
	}{
		"damaged":       {bad, Identity{"c1", RoleNode, "a"}, "auth.signing_request"},
		"garbage":       {[]byte("x"), Identity{"c1", RoleNode, "a"}, "auth.signing_request"},
		"other cluster": {request, Identity{"c2", RoleNode, "a"}, "auth.identity"},
		"no role":       {request, Identity{"c1", "king", "a"}, "auth.identity"},
		"odd name":      {request, Identity{"c1", RoleNode, "a/b"}, "auth.identity"},
	} {
		if _, err := a.Sign(tc.request, tc.id, testTime); !problem.HasCode(err, tc.code) {
			t.Errorf("%s: %v", name, err)
		}
	}
	certified := issue(t, a, Identity{"c1", RoleNode, "a"}, testTime)
	if _, err := k.Certify(encodeCertificate(certified.certificate.Raw)); !problem.HasCode(err, "auth.certificate") {
		t.Errorf("%v", err)
	}
	if certified.RenewDue(testTime.Add(19*24*time.Hour)) || !certified.RenewDue(testTime.Add(21*24*time.Hour)) {
		t.Error("it is renewed after two thirds of 30 days")
	}
}

func TestKeypairFiles(t *testing.T) {
	a := testAuthority(t, "c1")
	k := issue(t, a, Identity{"c1", RoleNode, "a"}, testTime)
	dir := filepath.Join(t.TempDir(), "pki")
	if err := k.Save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := LoadKeypair(dir)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := got.Identity(); err != nil || id.Name != "a" || !got.NotAfter().Equal(k.NotAfter()) {
		t.Errorf("%+v, %v", id, err)
	}
	if err := os.Chmod(filepath.Join(dir, keypairFile), 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKeypair(dir); !problem.HasCode(err, "auth.key_open") {
		t.Errorf("a key that others may read: %v", err)
	}
	for name, content := range map[string]string{"garbage": "x", "too long": string(make([]byte, keypairBytesMax+1))} {
		if err := os.Remove(filepath.Join(dir, keypairFile)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, keypairFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadKeypair(dir); err == nil {
			t.Errorf("%s was taken for a key", name)
		}
	}
	if _, err := LoadKeypair(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestTokens(t *testing.T) {
	a := testAuthority(t, "c1")
	token, err := NewToken(a.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	text := token.String()
	got, err := ParseToken(" " + text + "\n")
	if err != nil || got.ID != token.ID || got.CAPin != token.CAPin || string(got.SecretDigest()) != string(token.SecretDigest()) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := NewToken([]byte("x")); err == nil {
		t.Error("a token without an authority")
	}
	rapid.Check(t, func(t *rapid.T) {
		b := []byte(text)
		at := rapid.IntRange(0, len(b)-1).Draw(t, "at")
		with := rapid.SampledFrom([]byte("abcdefghijklmnopqrstuvwxyz234567!-")).Draw(t, "with")
		if b[at] == with {
			return
		}
		b[at] = with
		if _, err := ParseToken(string(b)); err == nil {
			t.Errorf("a token with a wrong character at %d was taken", at)
		}
		n := rapid.IntRange(0, len(text)-1).Draw(t, "cut")
		if _, err := ParseToken(text[:n]); err == nil {
			t.Errorf("%d characters of a token were taken", n)
		}
	})
	for text, code := range map[string]string{
		"": "token.malformed", "hello": "token.malformed", "blixard2-abc": "token.newer", text[:40]: "token.truncated",
	} {
		if _, err := ParseToken(text); !problem.HasCode(err, code) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	token := Token{ID: "aaaaaaaaaa", Secret: make([]byte, tokenSecretBytes)}
	f.Add(token.String())
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := ParseToken(text); err == nil {
			if again, err := ParseToken(got.String()); err != nil || again.ID != got.ID {
				t.Errorf("%q was read as %+v, which reads as %+v, %v", text, got, again, err)
			}
		}
	})
}

func FuzzParseIdentity(f *testing.F) {
	for _, s := range []string{"blixard://c1/node/node-a", "blixard://c1/king/a", "http://c1/node/a", "blixard://c1/node/a/b", "blixard:c1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := url.Parse(s)
		if err != nil {
			return
		}
		if id, err := ParseIdentity(u); err == nil && id.URI().String() != u.String() {
			t.Errorf("%q was taken for %+v", s, id)
		}
	})
}

// While authorities change, everybody gets on with everybody: who has not heard of
// the new one knows it by the old one's signature. What is dropped is worth nothing.
func TestAuthoritiesCross(t *testing.T) {
	old, next := testAuthority(t, "c1"), testAuthority(t, "c1")
	cross, err := old.Cross(next, testTime)
	if err != nil {
		t.Fatal(err)
	}
	all := func(pems ...[]byte) func() [][]byte { return func() [][]byte { return pems } }
	node := func(a *Authority, name string) *Keypair { return issue(t, a, Identity{"c1", RoleNode, name}, testTime) }
	with := func(k *Keypair, authorities, crosses func() [][]byte) *Trust {
		tr := trust(old, k)
		tr.Authorities, tr.Crosses = authorities, crosses
		return tr
	}
	late := with(node(old, "node-a"), all(old.Certificate()), nil)                                // has not heard
	between := with(node(old, "node-a"), all(next.Certificate(), old.Certificate()), all(cross))  // has, and is not renewed
	renewed := with(node(next, "node-a"), all(next.Certificate(), old.Certificate()), all(cross)) // is
	dropped := with(node(next, "node-a"), all(next.Certificate()), nil)                           // and the old one is dropped
	pair := func(a, b *Trust) bool {
		server, client, _ := handshake(t, a.ServerTLS(), b.ClientTLS("node-a"))
		return server == nil && client == nil
	}
	for _, a := range []*Trust{late, between, renewed} {
		for _, b := range []*Trust{late, between, renewed} {
			if !pair(a, b) {
				t.Error("two that trust the old authority do not get on")
			}
		}
	}
	if !pair(dropped, renewed) || !pair(renewed, dropped) || pair(dropped, between) || pair(dropped, late) {
		t.Error("a dropped authority is not what everybody sees it as")
	}
	// A token that pins the old authority still works before the drop, not after.
	pin, err := Pin(old.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	now := func() time.Time { return testTime }
	if _, err, _ := handshake(t, renewed.ServerTLS(), PinnedTLS(pin, now)); err != nil {
		t.Error(err)
	}
	if _, err, _ := handshake(t, dropped.ServerTLS(), PinnedTLS(pin, now)); !problem.HasCode(err, "auth.other_cluster") {
		t.Error(err)
	}
	if !node(old, "x").SignedBy(old.Certificate()) || node(old, "x").SignedBy(next.Certificate()) || node(old, "x").SignedBy(nil) {
		t.Error("who signed is not told rightly")
	}
	// A cross certificate of a stranger helps nobody.
	forged, err := testAuthority(t, "c1").Cross(next, testTime)
	if err != nil {
		t.Fatal(err)
	}
	if pair(with(node(next, "node-a"), all(next.Certificate()), all(forged)), late) {
		t.Error("an unknown authority vouched for another")
	}
}

// What was checked once is not taken any longer than it would be if it was
// checked each time.
func TestCallerIsAskedAnew(t *testing.T) {
	ours, others := testAuthority(t, "c1"), testAuthority(t, "c1")
	caller := issue(t, ours, Identity{"c1", RoleNode, "node-b"}, testTime)
	state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{caller.certificate}}
	server := trust(ours, caller)
	now, authority := testTime, ours
	var refusal error
	server.Now = func() time.Time { return now }
	server.Authorities = func() [][]byte { return [][]byte{authority.Certificate()} }
	server.Refused = func(Identity) error { return refusal }
	for _, step := range []struct {
		name   string
		change func()
		ok     bool
	}{
		{"first", func() {}, true},
		{"again", func() {}, true},
		{"expired", func() { now = caller.NotAfter().Add(time.Second) }, false},
		{"not yet valid", func() { now = caller.certificate.NotBefore.Add(-time.Second) }, false},
		{"valid again", func() { now = testTime }, true},
		{"removed", func() { refusal = errors.New("removed") }, false},
		{"taken again", func() { refusal = nil }, true},
		{"another authority", func() { authority = others }, false},
		{"the old authority", func() { authority = ours }, true},
	} {
		step.change()
		id, ok, err := server.Caller(state)
		if ok != step.ok || (err == nil) != step.ok || ok && id.Name != "node-b" {
			t.Errorf("%s: %v, %v, %v", step.name, id, ok, err)
		}
	}
}

// The nodes of a large cluster are each checked once, and what was checked goes with its
// connection.
func TestCallersAreCheckedOnce(t *testing.T) {
	const nodes = 5000
	a := testAuthority(t, "c1")
	server := trust(a, issue(t, a, Identity{"c1", RoleNode, "node-a"}, testTime))
	callers := make([]tls.ConnectionState, nodes)
	for n := range callers {
		caller := issue(t, a, Identity{"c1", RoleNode, fmt.Sprint("node-", n)}, testTime)
		callers[n].PeerCertificates = []*x509.Certificate{caller.certificate}
	}
	for range 2 {
		for n, state := range callers {
			if id, ok, err := server.Caller(state); !ok || id.Name != fmt.Sprint("node-", n) {
				t.Fatal(id, err)
			}
		}
		if got := len(server.checked); got != nodes {
			t.Fatalf("%d of %d are known", got, nodes)
		}
	}
	clear(callers)
	left := func() int {
		runtime.GC()
		server.mu.RLock()
		defer server.mu.RUnlock()
		return len(server.checked)
	}
	for until := time.Now().Add(30 * time.Second); left() > 0; {
		if time.Now().After(until) {
			t.Fatalf("%d are kept of nobody", left())
		}
	}
}

// However many there are, no more than so many are kept, and all are let in.
func TestCheckedHaveALimit(t *testing.T) {
	a := testAuthority(t, "c1")
	server := trust(a, issue(t, a, Identity{"c1", RoleNode, "node-a"}, testTime))
	others := make([]*x509.Certificate, checkedMax)
	for n := range others {
		others[n] = &x509.Certificate{}
		server.keep(others[n], checkedKey{leaf: weak.Make(others[n])}, checkedChain{})
	}
	caller := issue(t, a, Identity{"c1", RoleNode, "node-b"}, testTime)
	for range 2 {
		if _, ok, err := server.Caller(tls.ConnectionState{PeerCertificates: []*x509.Certificate{caller.certificate}}); !ok {
			t.Fatal(err)
		}
		if got := len(server.checked); got != checkedMax {
			t.Fatalf("%d are kept", got)
		}
	}
	runtime.KeepAlive(others)
}

func BenchmarkCaller(b *testing.B) {
	a := testAuthority(b, "c1")
	caller := issue(b, a, Identity{"c1", RoleOperator, "alice"}, testTime)
	state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{caller.certificate}}
	server := trust(a, caller)
	for b.Loop() {
		if _, ok, err := server.Caller(state); !ok {
			b.Fatal(err)
		}
	}
}
