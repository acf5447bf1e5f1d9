package main

import (
	"bytes"
	"os"
	"os/exec"
	"testing"
)

// asProgram makes the test binary the program.
const asProgram = "BLIXARD_TEST_PAGE"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestPageIsCurrent: the page in docs is what the program writes now.
func TestPageIsCurrent(t *testing.T) {
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(executable)
	cmd.Env = append(os.Environ(), asProgram+"=1")
	page, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile("../../docs/CLI.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(page, kept) {
		t.Error("docs/CLI.md is not current: run make generate")
	}
	// A page that can't be written is not half of one without a word.
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = full.Close() }()
	cmd = exec.Command(executable)
	cmd.Env, cmd.Stdout = append(os.Environ(), asProgram+"=1"), full
	if err := cmd.Run(); err == nil {
		t.Error("a full disk was no error")
	}
}
