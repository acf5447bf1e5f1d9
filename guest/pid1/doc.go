// Package pid1 is the guest's side of blixard: the first process of a microVM and the agent in it.
//
// It is not a service manager: it runs one command, or the image's own init in a PID namespace. It
// needs no network, reads no configuration file and trusts its host wholly; the host does not trust it.
//
// What it does, in order:
//  1. Mount /dev, /proc and /sys, load the modules listed in /blixard/modules, open the channel.
//  2. Wait for the boot configuration. A host may come and go at any moment.
//  3. Mount the image read-only, lay the writable disk (or memory) over it, make that the root; mount the
//     volumes below it, set up the NICs, write names, secrets (to memory alone), files and keys.
//  4. Start the command, and say ready.
//  5. Reap orphans; copy the command's output to the console and to whoever is attached; on request run
//     further commands, copy files, join connections to servers, probe those, change volumes.
//  6. When the command ends or someone asks for the end: kill what is left, make the disks clean,
//     report the exit, wait for the host's acknowledgement, end the machine.
//
// The machine always ends by reboot(2), which under QEMU with reboot=t and -no-reboot is the fastest way
// out and needs no ACPI. The host learns from the exit report whether to boot it again.
package pid1
