// Package agent is the VM-running half of a node: it compares what the cluster
// desires of the node's allocations with what is observed, and carries out the
// difference.
//
// Core decides and is pure: facts in by its methods, actions out by Poll, the
// time an argument. The executor carries actions out (disks, supervisor, driver,
// guest) and feeds the results back; run.go owns the goroutines. Everything the
// core must remember over a crash is in the AllocationRecord, which is durable
// before the step it announces begins, so every step can be finished or undone.
//
// It is not a reader of the replicated state: it knows only what the cluster's
// AgentService tells it, on this node or over a network. It does not place VMs
// and does not decide whether a lost node's VMs go elsewhere.
package agent
