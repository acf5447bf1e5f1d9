// Package sim runs whole clusters in one goroutine: the product's replica, state,
// leader's decisions and peer codec over a simulated clock, network and disk, with
// faults drawn from one seed, so that every run can be repeated exactly.
//
// While it runs it checks that hosts apply the same entries and are in the same
// state at the same index, that a term has one leader, that what was acknowledged
// was applied, that epochs and capacity are never given twice and that queues are
// bounded; in the end that the cluster converges once faults end, and that the
// history of all clients is linearizable.
//
// It is not a test of the files of the log (package wal has its own), of gRPC
// connections or of hypervisors: those are modelled, or left out. The agents are a
// model that reports what is wanted of it.
package sim
