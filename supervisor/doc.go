// Package supervisor is the small process that is the parent of VMM processes,
// one a lane (shared, exclusive), and the client by which the daemon uses it.
//
// It is not part of the daemon's lifetime: the daemon can be killed, hung or
// upgraded, and no VM notices. It decides nothing: what runs, and when it is
// started again, is the agent's business. It knows no hypervisor and never reads
// what a guest writes, it only keeps it.
//
// What it owes, in this order:
//  1. No process outlives it: each carries PDEATHSIG SIGKILL, and all are forked
//     from one locked thread that lives as long as the supervisor.
//  2. On the exclusive lane none outlives its lease either: a kernel timer on
//     CLOCK_BOOTTIME kills the supervisor at the deadline (see fence.go). A
//     renewal pushes it forward.
//  3. The console of each process is drained at a bounded rate into a ring and
//     into rotated log files, whoever watches or does not.
//  4. The end of each process is kept until the daemon has taken note of it.
//
// SIGTERM and SIGINT end a supervisor together with its processes, which get
// SIGTERM and a little later SIGKILL. The call Shutdown is refused while one
// runs.
//
// # Jails
//
// A process whose request has a jail runs as a user of its own, without a
// capability, in a root directory with its program, the libraries of that, and
// what the request lets it read, in namespaces of its own, and in a control group
// with limits. Its files, taps, sockets and terminal are handed over opened; it
// finds nothing of the host by a name. Landlock forbids the same once more, and is
// what is left of a jail under a supervisor that is not root. What can't be done
// for want of rights is told in the process's metadata ([driver.MetadataJail]);
// what fails otherwise fails the spawn, with code supervisor.jail and the step.
//
// Most of a jail is a property of a thread that its children inherit and that
// nobody can take off again. So each jailed process is forked by a thread of its
// own, which lives as long as the process does, for the sake of PDEATHSIG; see
// cell.go and package internal/jail. A thread costs some 30 KiB. The first process
// of a program costs some 30 ms more, for the list of its libraries.
//
// Limits that belong to processes (the control group, rlimits, oom_score_adj) are
// set right after the fork: until then runs the VMM's own start, and no guest.
//
// # Files
//
// A lane has the directory DIR/LANE (mode 0700) with socket, lock, record and
// log. The lock is held with flock for as long as the supervisor lives, so there
// is one at a time; the record names the process beyond doubt.
//
// A console's log is its raw bytes in PATH, PATH.1 and so on, the newest first.
// Beside each is an index PATH.idx of (offset, time) pairs, at most one a second,
// by which [ReadLogs] finds a time. Both are appended to only.
package supervisor
