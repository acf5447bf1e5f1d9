//go:build linux

package pid1

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/blixard/blixard/guest/wire"
)

// maxAccounts bounds what is read of /etc/passwd and /etc/group: 1 MiB holds about 15,000 lines.
const maxAccounts = 1 << 20

// account is who a process runs as.
type account struct {
	uid, gid uint32
	groups   []uint32
	name     string
	home     string
}

// lookupUser finds "name", "uid", "name:group" or "uid:gid" in the files of an image below root. Empty
// is root, looked up nowhere. Numbers need no entry; names do.
func lookupUser(root, spec string) (account, error) {
	if spec == "" {
		return account{name: "root", home: "/root"}, nil
	}
	user, group, hasGroup := strings.Cut(spec, ":")
	if user == "" {
		user = "0"
	}
	a := account{home: "/"}
	id, numeric := parseID(user)
	found := false
	scanAccounts(root+"/etc/passwd", 7, func(f []string) bool {
		uid, ok := parseID(f[2])
		if !ok || (f[0] != user && (!numeric || uid != id)) {
			return true
		}
		gid, _ := parseID(f[3])
		a = account{uid: uid, gid: gid, name: f[0], home: f[5]}
		found = true
		return false
	})
	if !found {
		if !numeric {
			return account{}, badUser("no user %q in /etc/passwd of the image", user)
		}
		a.uid = id
		if id == 0 {
			a.name, a.home = "root", "/root"
		}
	}
	if a.home == "" {
		a.home = "/"
	}
	if hasGroup {
		gid, err := lookupGroup(root, group)
		if err != nil {
			return account{}, err
		}
		a.gid = gid
		return a, nil
	}
	a.groups = groupsOf(root, a.name)
	return a, nil
}

func lookupGroup(root, group string) (uint32, error) {
	id, numeric := parseID(group)
	found := numeric
	scanAccounts(root+"/etc/group", 4, func(f []string) bool {
		if gid, ok := parseID(f[2]); ok && f[0] == group {
			id, found = gid, true
			return false
		}
		return true
	})
	if !found {
		return 0, badUser("no group %q in /etc/group of the image", group)
	}
	return id, nil
}

// groupsOf lists the groups that name the user as a member.
func groupsOf(root, name string) []uint32 {
	var groups []uint32
	if name == "" {
		return nil
	}
	scanAccounts(root+"/etc/group", 4, func(f []string) bool {
		for _, member := range strings.Split(f[3], ",") {
			if gid, ok := parseID(f[2]); ok && member == name {
				groups = append(groups, gid)
			}
		}
		return true
	})
	return groups
}

// scanAccounts calls f with the fields of each line that has enough of them, until f returns false.
func scanAccounts(path string, fields int, f func([]string) bool) {
	file, err := os.Open(path)
	if err != nil {
		return
	}
	defer file.Close()
	b, err := io.ReadAll(io.LimitReader(file, maxAccounts))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(b)) {
		if v := strings.Split(strings.TrimSuffix(line, "\n"), ":"); len(v) >= fields && !f(v) {
			return
		}
	}
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil
}

func badUser(format string, args ...any) error {
	return &wire.Problem{
		Kind: wire.KindInvalid, Code: "guest.user", Message: fmt.Sprintf(format, args...),
		Hint: "give a user the image has, or a number", ExitCode: wire.CodeNotExecutable,
	}
}
