// Package qemu drives QEMU's machine type microvm: it builds the command, speaks
// QMP over the control socket and finds out what the host's QEMU can do.
//
// It is not the parent of QEMU: the Spawner is. It does not judge a guest: what
// comes over QMP is parsed with limits, and state that counts is taken from the
// process.
//
// # A VM's sockets
//
// The supervisor makes two sockets in the VM's directory and hands them over as
// descriptors: agent.sock is the virtio-serial port of the guest's channel,
// qmp.sock the monitor. QEMU serves one client on each, so a VM here holds one
// QMP connection and opens it again when it breaks. A hung QEMU blocks no call
// beyond its deadline.
//
// # The accelerator
//
// KVM counts only when a tiny guest of our own really ran under it within a
// deadline: /dev/kvm may be there, accept the creation of a VM, and still not run
// a kernel. See probe/guest.s.
package qemu
