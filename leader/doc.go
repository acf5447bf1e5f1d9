// Package leader is what only the leader of the cluster does: it looks at every
// change of the state, asks the scheduler where VMs go, and proposes the plans;
// and it grants the leases of nodes.
//
// Core decides and is pure: changes in, commands out. run.go owns the goroutine.
// It is not a reader of the log and not the owner of any state: what it knows, it
// can make again from a view, and a new leader does.
package leader
