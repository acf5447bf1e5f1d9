// Package scheduler decides where a VM runs: Evaluate looks at a view of the
// state and gives a plan, or says why there is none. It is pure.
//
// It is not what applies a plan: the state checks every placement again, since
// it may have moved. It keeps nothing between calls.
package scheduler
