package jail

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// onThread runs a function on a thread that ends with it, and has root's rights.
func onThread(t *testing.T, run func() error) error {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("only root gets a root directory of its own: run the tests as root")
	}
	failed := make(chan error)
	var try func()
	try = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer runtime.UnlockOSThread()
			again := make(chan struct{})
			go func() {
				defer close(again)
				try()
			}()
			<-again
			return
		}
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = run()
		}
		failed <- err
	}
	go try()
	return <-failed
}

func fileOf(t *testing.T, path string) File {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return File{FD: 9, Path: path, Device: st.Dev, Inode: st.Ino}
}

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func read(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	b := make([]byte, 64)
	n, err := unix.Read(fd, b)
	return string(b[:max(n, 0)]), err
}

// TestEnter: the thread is in its jail, and no other is.
func TestEnter(t *testing.T) {
	dir := t.TempDir()
	secret := writeFile(t, filepath.Join(dir, "secret"), "secret")
	given := writeFile(t, filepath.Join(dir, "given"), "given")
	shown := filepath.Join(dir, "shown")
	if err := os.Mkdir(shown, 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(shown, "file"), "shown")
	c := Config{
		Program: "/bin/sh", ReadPaths: []string{filepath.Join(shown, "file"), shown, "/bin/sh"},
		Files: []File{fileOf(t, given)}, UID: 700_000, GID: 700_000,
	}
	err := onThread(t, func() error {
		notices, err := Enter(c)
		if err != nil || len(notices) != 0 {
			t.Errorf("%v, %v", notices, err)
		}
		for path, want := range map[string]string{"/proc/self/fd/9": "given", filepath.Join(shown, "file"): "shown", "/dev/null": ""} {
			if got, err := read(path); err != nil || got != want {
				t.Errorf("%s: %q, %v", path, got, err)
			}
		}
		for _, path := range []string{secret, given, "/etc/passwd", "/proc/1/status", "/sys"} {
			if got, err := read(path); !errors.Is(err, unix.ENOENT) {
				t.Errorf("%s: %q, %v", path, got, err)
			}
		}
		for _, path := range []string{"/new", "/dev/new", shown + "/new", "/proc/self/fd/10"} {
			if fd, err := unix.Open(path, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600); err == nil {
				t.Errorf("%s was made: %v", path, unix.Close(fd))
			}
		}
		if err := unix.Mount("none", "/", "tmpfs", 0, ""); err == nil {
			t.Error("it can mount")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := read(secret); err != nil {
		t.Errorf("other threads are in the jail: %v", err)
	}
}

// TestEnterFails and says at which step.
func TestEnterFails(t *testing.T) {
	dir := t.TempDir()
	given := writeFile(t, filepath.Join(dir, "given"), "given")
	link := filepath.Join(dir, "link")
	if err := os.Symlink(given, link); err != nil {
		t.Fatal(err)
	}
	linked := fileOf(t, given)
	linked.Path = link
	other := fileOf(t, given)
	other.Inode++
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no program":          {func(c *Config) { c.Program = "/nonexistent" }, "step program"},
		"no library":          {func(c *Config) { c.Libraries = []string{"/nonexistent"} }, "step libraries"},
		"path is a fifo":      {func(c *Config) { c.ReadPaths = []string{fifo} }, "step read-paths"},
		"path in a file":      {func(c *Config) { c.ReadPaths = []string{"/bin/sh/x"} }, "step read-paths"},
		"file has gone":       {func(c *Config) { c.Files = []File{{FD: 9, Path: dir + "/gone"}} }, "step files"},
		"file was replaced":   {func(c *Config) { c.Files = []File{other} }, "another file"},
		"file became a link":  {func(c *Config) { c.Files = []File{linked} }, "another file"},
		"two of one number":   {func(c *Config) { c.Files = []File{fileOf(t, given), fileOf(t, given)} }, "step files"},
		"path hides a device": {func(c *Config) { c.ReadPaths = []string{"/dev"} }, "step devices"},
	} {
		c := Config{Program: "/bin/sh"}
		tc.change(&c)
		err := onThread(t, func() error {
			_, err := Enter(c)
			return err
		})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHostsDevice is shown where none can be made.
func TestHostsDevice(t *testing.T) {
	err := onThread(t, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		root, err := mountRoot()
		if err != nil {
			return err
		}
		defer unix.Close(root)
		tr := &tree{root: root}
		if err := errors.Join(tr.bindDevice(devices[0]), tr.seal(), pivot(root)); err != nil {
			return err
		}
		fd, err := unix.Open("/dev/null", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
	if err != nil {
		t.Error(err)
	}
}
