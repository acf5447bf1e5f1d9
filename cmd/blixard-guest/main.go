//go:build linux

// Command blixard-guest is the first process of every microVM: init and agent in one static program.
// What it does is package guest/pid1.
package main

import (
	"os"

	"github.com/blixard/blixard/guest/pid1"
)

func main() { os.Exit(pid1.Main()) }
