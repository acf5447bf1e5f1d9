// Package sim runs whole clusters in one goroutine: the product's replica, state,
// leader's decisions and leases, agent's core, fence and peer codec over a simulated
// clock, network, disk and hypervisor, with faults drawn from one seed, so that every
// run can be repeated exactly.
//
// While it runs it checks that hosts apply the same entries and are in the same
// state at the same index, that a term has one leader, that what was acknowledged
// was applied, that epochs and capacity are never given twice, that nothing exceeds a
// quota, that no VM runs twice and no boot of one has the number of another,
// that no exclusive VM runs on a node that is down, that room is made only by VMs of lower
// priority, that a task's command begins no more often than it may, that the
// rollout of a group keeps to its bounds, that no damaged snapshot is taken
// and that queues are bounded; in the end that the cluster, its agents and its VMs
// converge once faults end, and that the history of all clients is linearizable.
//
// It is not a test of the files of the log (package wal has its own), of gRPC
// connections or of hypervisors: those are modelled, or left out.
package sim
