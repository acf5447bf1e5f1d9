// Package scheduler decides where a VM runs: a [Fleet] follows the nodes, and of the
// VMs those that have labels, as a view of the state has them, and places VMs or says
// for each node why not. It is pure: equal views give equal decisions.
//
// It is not what applies a plan: the state checks every placement again, since
// it may have moved.
package scheduler
