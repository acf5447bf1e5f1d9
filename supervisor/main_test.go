package supervisor

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/blixard/blixard/driver"
)

// quiet is a log for tests.
var quiet = slog.New(slog.DiscardHandler)

// The test binary also serves as the program of a supervisor.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "supervisor" {
		os.Exit(superviseMain(os.Args[2:]))
	}
	goleak.VerifyTestMain(m)
}

func superviseMain(args []string) int {
	fs := flag.NewFlagSet("supervisor", flag.ContinueOnError)
	lane, dir := fs.String("lane", "", ""), fs.String("dir", "", "")
	if err := fs.Parse(args); err != nil {
		return 2
	}
	if err := Run(context.Background(), Config{Lane: driver.Lane(*lane), Dir: *dir, Version: "test"}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}
