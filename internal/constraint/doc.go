// Package constraint is the text form of conditions on nodes, such as zone=a or
// node.version>=0.2, and whether labels meet them; and of taints of nodes, such as
// gpu=yes:no-schedule, and whether VMs tolerate them. It is pure.
//
// It is not what chooses nodes: see package scheduler.
package constraint
