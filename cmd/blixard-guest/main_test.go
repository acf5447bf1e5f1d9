//go:build linux

package main

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// asProgram makes the test binary the program.
const asProgram = "BLIXARD_TEST_GUEST"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// TestRunsOnlyAsInit: started by a person, it says what it is and touches nothing.
func TestRunsOnlyAsInit(t *testing.T) {
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(executable)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	told, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 2 || !strings.Contains(string(told), "runs only as process 1") {
		t.Errorf("%v: %s", err, told)
	}
}
