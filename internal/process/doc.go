// Package process names a process of this host so that the name can never match
// a stranger's, and signals and awaits it by a pidfd.
//
// A pid alone is given to another process sooner or later. Pid, start time and
// the host's boot id together are not: the kernel hands a pid out again only to a
// process that starts later, and after a reboot the boot id differs.
//
// It is not a way to start processes: the supervisor does that.
package process
