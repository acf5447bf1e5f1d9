package vmnet

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// roleEnv tells a process of this test binary what it is.
const roleEnv = "BLIXARD_TEST_VMNET"

// TestMain runs the tests in namespaces of their own, so that the host's network
// is never touched. They need root.
func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(again("tests"))
	case "host":
		serveHost(os.Stdin, os.Stdout)
		return
	case "victim":
		beVictim()
		return
	}
	for _, step := range []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "") },
		func() error { return os.MkdirAll("/run/netns", 0o755) },
		func() error { return unix.Mount("netns", "/run/netns", "tmpfs", 0, "") },
		func() error { return exec.Command("ip", "link", "set", "lo", "up").Run() },
	} {
		if err := step(); err != nil {
			fmt.Fprintln(os.Stderr, "the tests of vmnet need root:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// again runs this program in new namespaces and gives its exit code.
func again(role string) int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, "the tests of vmnet need root:", err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}
