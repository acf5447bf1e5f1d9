package cli_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"github.com/blixard/blixard/cli"
)

// TestMain lets the test binary be the program: under the name blixard, in the
// scripts and wherever the program starts itself again, it is nothing else.
func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){
		"blixard":   func() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
		"pushimage": pushimage,
	})
}

// leakChecked fails a run that leaves goroutines behind.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}
