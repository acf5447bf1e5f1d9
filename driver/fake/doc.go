// Package fake is a driver without a hypervisor, for tests and simulation: its
// machines do what a [Behaviour] says and hold the same contract as real ones
// (package drivertest).
//
// It has no clock, no randomness and no goroutine of its own, so that a run with
// the same calls is the same run. It is not part of any node: a daemon can't be
// told to use it.
package fake
