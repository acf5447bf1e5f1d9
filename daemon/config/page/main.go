// Command page writes docs/CONFIGURATION.md to its standard output; `make
// generate` runs it.
package main

import (
	"fmt"
	"os"

	"github.com/blixard/blixard/daemon/config"
)

func main() {
	if err := config.WritePage(os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
