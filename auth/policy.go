package auth

import (
	"context"
	"os"
	"os/user"
	"strconv"

	"github.com/blixard/blixard/internal/problem"
)

// Policy decides who may use the unix socket. It is safe for concurrent use.
type Policy struct {
	group  string
	own    uint32
	lookup func(group string) (gid uint32, ok bool)
}

// NewPolicy allows root, the user of this process and the members of group,
// which need not exist. The group is looked up at every decision, so that it may
// be made later.
func NewPolicy(group string) *Policy {
	return &Policy{group: group, own: uint32(os.Geteuid()), lookup: lookupGroup}
}

func lookupGroup(name string) (gid uint32, ok bool) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(g.Gid, 10, 32)
	return uint32(n), err == nil
}

// Group gives the id of the group, for the owner of the socket's file; ok is
// false when there is no such group.
func (p *Policy) Group() (gid uint32, ok bool) { return p.lookup(p.group) }

// Allow returns nil when the caller may do everything, else a problem of kind
// Denied and code auth.denied.
func (p *Policy) Allow(caller Caller) error {
	if caller.UID == 0 || caller.UID == p.own {
		return nil
	}
	gid, exists := p.lookup(p.group)
	if exists && caller.In(gid) {
		return nil
	}
	denied := problem.New(problem.Denied, "auth.denied", "user %d may not use this node", caller.UID)
	if !exists {
		return denied.WithHint("run the command as root, or make the group with `groupadd %s`, add yourself with `usermod -aG %s USER` and log in again", p.group, p.group)
	}
	return denied.WithHint("run the command as root, or have yourself added with `usermod -aG %s USER` and log in again", p.group)
}

// Check finds who calls and decides: the one function to put in front of every
// call. It returns the caller for the handler.
func (p *Policy) Check(ctx context.Context) (Caller, error) {
	caller, err := FromContext(ctx)
	if err != nil {
		return Caller{}, err
	}
	return caller, p.Allow(caller)
}
