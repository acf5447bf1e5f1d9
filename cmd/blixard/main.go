// Command blixard is the one program of blixard: node daemon, command line and
// supervisor.
package main

import (
	"os"

	"github.com/blixard/blixard/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }
