package supervisor

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
)

// TestWithoutRoot: a supervisor of a user confines by what every user may do, and
// says what is missing.
func TestWithoutRoot(t *testing.T) {
	const uid = 543_210
	dir, err := os.MkdirTemp("/tmp", "blixard-supervisor-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	program := filepath.Join(dir, "supervisor.test")
	copyFile(t, testExecutable(t), program)
	work := filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		t.Fatal(err)
	}
	given := filepath.Join(work, "given")
	if err := os.WriteFile(given, []byte("text\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{dir, work, given} {
		if err := os.Chown(p, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program, "supervisor", "--lane", "shared", "--dir", dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
	})
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	for !listens(ctx, lanePaths(dir, driver.LaneShared)) {
		if ctx.Err() != nil {
			t.Fatal("it does not listen")
		}
	}
	// The client refuses a supervisor of another user, so this one talks by hand.
	conn, err := grpc.NewClient("unix:"+lanePaths(dir, driver.LaneShared).socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	c := blixardv1.NewSupervisorServiceClient(conn)
	r := &blixardv1.SpawnRequest{
		ProcessId: "a.1", WorkingDir: work, LogPath: filepath.Join(work, "console.log"),
		Argv: []string{"/bin/sh", "-c", `
			(: </etc/passwd) 2>/dev/null || echo not read
			(: >"$0/new") 2>/dev/null || echo not made
			read line </proc/self/fd/3 && echo given $line
			while read a b; do case $a in NoNewPrivs:|CapEff:) echo $a $b;; esac; done </proc/self/status
			sleep 0 2>/dev/null || echo not run`, work},
		Files: []*blixardv1.SpawnFile{{Path: given, ReadOnly: true}},
		Jail:  &blixardv1.Jail{Uid: 1, MemoryBytes: 64 << 20, ReadPaths: []string{"/proc"}},
	}
	if _, err := c.Spawn(ctx, r); err != nil {
		t.Fatal(err)
	}
	w, err := c.Wait(ctx, &blixardv1.WaitRequest{ProcessId: "a.1"})
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(r.GetLogPath())
	if err != nil {
		t.Fatal(err)
	}
	got, p := string(log), w.GetProcess()
	if want := "not read\nnot made\ngiven text\nCapEff: 0000000000000000\nNoNewPrivs: 1\nnot run\n"; got != want {
		t.Errorf("%q; %v", got, p)
	}
	notice := p.GetMetadata()[driver.MetadataJail]
	for _, want := range []string{"not root", "controller memory"} {
		if !strings.Contains(notice, want) {
			t.Errorf("no %q in the notice %q", want, notice)
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
}
