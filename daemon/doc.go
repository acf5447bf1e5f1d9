// Package daemon wires a node: its data directory, replica, server, leader's
// part, agent and supervisors, in the order of their needs, and ends them in the
// opposite one.
//
// It is not where any of them decides something; it depends on all of them, so
// nothing but the command line may import it. Settings are read by
// daemon/config.
package daemon
