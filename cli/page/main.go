// Command page writes docs/CLI.md to its standard output; `make generate` runs it.
package main

import (
	"fmt"
	"os"

	"github.com/blixard/blixard/cli"
)

func main() {
	if err := cli.WritePage(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
