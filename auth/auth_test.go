package auth

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc/peer"

	"github.com/blixard/blixard/internal/problem"
)

// childSocket makes the test binary a client of that abstract socket.
const childSocket = "BLIXARD_TEST_AUTH_SOCKET"

func TestMain(m *testing.M) {
	if path := os.Getenv(childSocket); path != "" {
		child(path)
		return
	}
	goleak.VerifyTestMain(m)
}

// child connects and stays until the server closes the connection.
func child(path string) {
	c, err := net.Dial("unix", path)
	if err == nil {
		_, err = io.Copy(io.Discard, c)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// abstract gives the address of a socket without a file, which every user can
// reach.
func abstract(t *testing.T) string {
	return fmt.Sprintf("@blixard-test-%d-%s", os.Getpid(), t.Name())
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", abstract(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return Listener(l)
}

// connectAs lets a child process of those credentials connect, and gives the
// server's end.
func connectAs(t *testing.T, l net.Listener, cred *syscall.Credential) net.Conn {
	t.Helper()
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = self.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	// By its descriptor, since another user can't reach the binary's directory.
	cmd := exec.CommandContext(ctx, "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{self}
	cmd.Env = []string{childSocket + "=" + abstract(t)}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		defer cancel()
		_ = conn.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("child: %v: %s", err, stderr.String())
		}
	})
	if pid := conn.(*Conn).Caller.PID; int(pid) != cmd.Process.Pid {
		t.Errorf("the caller is process %d, want %d", pid, cmd.Process.Pid)
	}
	return conn
}

func testPolicy(gid uint32, exists bool) *Policy {
	return &Policy{group: "blixard", own: 4000, lookup: func(string) (uint32, bool) { return gid, exists }}
}

// TestOtherUsers needs root, as does whoever starts VMs in tests.
func TestOtherUsers(t *testing.T) {
	const gid = 70001
	many := make([]uint32, 200)
	for i := range many {
		many[i] = uint32(80000 + i)
	}
	for _, tc := range []struct {
		name    string
		cred    syscall.Credential
		allowed bool
	}{
		{"root", syscall.Credential{}, true},
		{"the daemon's user", syscall.Credential{Uid: 4000, Gid: 4000}, true},
		{"stranger", syscall.Credential{Uid: 4001, Gid: 4001, Groups: []uint32{1, 2}}, false},
		{"root's group only", syscall.Credential{Uid: 4001, Gid: 0}, false},
		{"primary group", syscall.Credential{Uid: 4001, Gid: gid}, true},
		{"supplementary group", syscall.Credential{Uid: 4001, Gid: 4001, Groups: []uint32{5, gid}}, true},
		{"last of many groups", syscall.Credential{Uid: 4001, Gid: 4001, Groups: append(slices.Clone(many), gid)}, true},
		{"many other groups", syscall.Credential{Uid: 4001, Gid: 4001, Groups: many}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conn := connectAs(t, listen(t), &tc.cred)
			caller := conn.(*Conn).Caller
			if caller.UID != tc.cred.Uid || caller.GID != tc.cred.Gid || caller.Actor() != fmt.Sprintf("user:%d", tc.cred.Uid) {
				t.Errorf("caller is %+v", caller)
			}
			groups := slices.Clone(tc.cred.Groups)
			slices.Sort(groups)
			if !slices.Equal(caller.Groups, groups) {
				t.Errorf("groups are %v, want %v", caller.Groups, groups)
			}
			err := testPolicy(gid, true).Allow(caller)
			if tc.allowed != (err == nil) {
				t.Errorf("allowed is %v, want %v", err, tc.allowed)
			}
			if err != nil && (!problem.HasCode(err, "auth.denied") || !strings.Contains(problem.From(err).Hint, "usermod -aG blixard")) {
				t.Errorf("refused with %+v", problem.From(err))
			}
			err = testPolicy(gid, false).Allow(caller)
			if want := tc.cred.Uid == 0 || tc.cred.Uid == 4000; want != (err == nil) {
				t.Errorf("without the group: %v", err)
			}
			if err != nil && !strings.Contains(problem.From(err).Hint, "groupadd blixard") {
				t.Errorf("hint %q", problem.From(err).Hint)
			}
		})
	}
}

func TestGRPC(t *testing.T) {
	conn := connectAs(t, listen(t), nil)
	var creds Credentials
	same, info, err := creds.Clone().ServerHandshake(conn)
	if err != nil || same != conn || info.AuthType() != "unix-peer" || creds.Info().SecurityProtocol != "unix-peer" {
		t.Fatalf("%v, %v", info, err)
	}
	ctx := peer.NewContext(context.Background(), &peer.Peer{AuthInfo: info})
	caller, err := NewPolicy("blixard").Check(ctx)
	if err != nil || caller.UID != uint32(os.Geteuid()) {
		t.Errorf("%+v, %v", caller, err)
	}
	// A connection that did not come through Listener works as well.
	if _, info, err = creds.ServerHandshake(conn.(*Conn).Conn); err != nil || info.(Info).Caller.UID != caller.UID {
		t.Errorf("%v, %v", info, err)
	}
	if _, _, err := creds.ClientHandshake(ctx, "", conn); err == nil {
		t.Error("a client may not use these credentials")
	}
	if creds.OverrideServerName("x") != nil {
		t.Error("OverrideServerName")
	}
}

type wrapped struct{ net.Conn }

func (w wrapped) NetConn() net.Conn { return w.Conn }

func TestNobodyIsAnonymous(t *testing.T) {
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	if _, _, err := (Credentials{}).ServerHandshake(wrapped{a}); err == nil {
		t.Error("a pipe has no caller")
	}
	if _, err := FromContext(ConnContext(context.Background(), a)); !problem.HasCode(err, "auth.unknown_caller") {
		t.Errorf("a pipe: %v", err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tcp.Close() }()
	c, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	if _, err := CallerOf(c); err == nil {
		t.Error("a TCP connection has no caller")
	}
	// Listener drops such connections and goes on until its own end.
	accepted := make(chan error, 1)
	go func() { _, err := Listener(tcp).Accept(); accepted <- err }()
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("the connection was kept")
	}
	_ = tcp.Close()
	if err := <-accepted; err == nil {
		t.Error("accepted a TCP connection")
	}
	if _, err := NewPolicy("no-such-group").Check(context.Background()); !problem.Is(err, problem.Denied) {
		t.Errorf("no caller: %v", err)
	}
	if _, ok := NewPolicy("no-such-group").Group(); ok {
		t.Error("found a group that is not there")
	}
	if gid, ok := NewPolicy("root").Group(); !ok || gid != 0 {
		t.Errorf("group root is %d, %v", gid, ok)
	}
}

func TestHTTP(t *testing.T) {
	l := listen(t)
	srv := &http.Server{
		ConnContext: ConnContext, ReadHeaderTimeout: time.Minute,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			caller, err := NewPolicy("blixard").Check(r.Context())
			_, _ = fmt.Fprintf(w, "%s %v", caller.Actor(), err)
		}),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(l) }()
	c, err := net.Dial("unix", abstract(t))
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	_, _, _ = resp.Body.Close(), c.Close(), srv.Close()
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	if want := fmt.Sprintf("user:%d <nil>", os.Geteuid()); string(body) != want {
		t.Errorf("got %q, want %q", body, want)
	}
	if got := ConnContext(context.Background(), wrapped{&Conn{Caller: Caller{UID: 9}}}); got.Value(callerKey{}).(Caller).UID != 9 {
		t.Error("the caller below a wrapper was not found")
	}
}
