// Package driver is the seam between blixard and a hypervisor: one interface,
// implemented by driver/qemu and driver/fake, held to one conformance suite in
// driver/drivertest.
//
// It is not the owner of VMM processes: a driver builds the command and speaks
// the VMM's control protocol, and the Spawner it is given (the supervisor) is
// parent of the process. It decides nothing about when a VM runs: that is the
// agent.
package driver
