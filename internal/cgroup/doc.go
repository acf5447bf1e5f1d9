// Package cgroup bounds processes by the kernel's control groups, of either
// version and of both at once: what the host has of memory, cpu and pids is
// used, and what it lacks is told.
//
// It is not a manager of the host's groups: it makes and removes only those below
// its own directory, /blixard/SCOPE of each hierarchy.
package cgroup
