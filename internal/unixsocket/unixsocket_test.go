package unixsocket

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/blixard/blixard/internal/problem"
)

func TestListenAndDial(t *testing.T) {
	for _, depth := range []int{0, 3} {
		dir := t.TempDir()
		for range depth {
			dir = filepath.Join(dir, strings.Repeat("d", 80))
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "a.sock")
		l, err := Listen(path, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err == nil {
				_, err = c.Write([]byte("x"))
				_ = c.Close()
			}
			done <- err
		}()
		c, err := Dial(context.Background(), path)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1)
		if _, err := c.Read(buf); err != nil || buf[0] != 'x' {
			t.Fatalf("read %q, %v", buf, err)
		}
		_ = c.Close()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if _, err := Listen(path, 0o600); !problem.HasCode(err, "socket.in_use") {
			t.Fatalf("second listener: %v", err)
		}
		l.SetUnlinkOnClose(false)
		_ = l.Close()
		if _, err := Dial(context.Background(), path); !Absent(err) {
			t.Fatalf("dial a dead socket: %v", err)
		}
		l, err = Listen(path, 0o600)
		if err != nil {
			t.Fatalf("a dead socket must be replaced: %v", err)
		}
		_ = l.Close()
	}
}

func TestBadPaths(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("s", 120))
	if _, err := Listen(long, 0o600); !problem.HasCode(err, "socket.path_too_long") {
		t.Errorf("long name: %v", err)
	}
	if _, err := Dial(context.Background(), long); !problem.HasCode(err, "socket.path_too_long") {
		t.Errorf("long name: %v", err)
	}
	deep := filepath.Join(dir, strings.Repeat("n", 100), "a.sock")
	if _, err := Dial(context.Background(), deep); !Absent(err) {
		t.Errorf("missing directory: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(file, 0o600); !problem.HasCode(err, "socket.not_a_socket") {
		t.Errorf("plain file: %v", err)
	}
	if b, _ := os.ReadFile(file); string(b) != "keep" {
		t.Errorf("the file was changed to %q", b)
	}
}
