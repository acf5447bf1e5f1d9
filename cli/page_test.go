package cli_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/blixard/blixard/cli"
)

// TestPageIsCurrent: docs/CLI.md is what the commands say of themselves, and each
// of them has an example.
func TestPageIsCurrent(t *testing.T) {
	var b bytes.Buffer
	if err := cli.WritePage(&b); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile("../docs/CLI.md")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(written, b.Bytes()) {
		t.Error("docs/CLI.md is not what the commands say: run `make generate`")
	}
	for _, section := range strings.Split(b.String(), "\n### ")[1:] {
		name, text, _ := strings.Cut(section, "\n")
		if !strings.Contains(text, "\nExamples:\n\n    ") {
			t.Errorf("%s has no example", name)
		}
		if strings.Contains(text, "supervisor --lane") {
			t.Errorf("%s is of no use to people", name)
		}
	}
}
