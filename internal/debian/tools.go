package debian

import (
	"os/exec"
	"slices"
	"strings"

	"github.com/blixard/blixard/internal/problem"
)

// toolPackages says which Debian package has a tool that blixard runs.
var toolPackages = map[string]string{
	"apt-get":            "apt",
	"apt-cache":          "apt",
	"dpkg-deb":           "dpkg",
	"tar":                "tar",
	"xz":                 "xz-utils",
	"make":               "make",
	"gcc":                "gcc",
	"ld":                 "binutils",
	"objcopy":            "binutils",
	"flex":               "flex",
	"bison":              "bison",
	"bc":                 "bc",
	"perl":               "perl",
	"mkfs.ext4":          "e2fsprogs",
	"qemu-system-x86_64": "qemu-system-x86",
}

// RequireTools checks that all the named programs can be found. It fails with a problem of kind
// Unavailable and code tools.missing that names the missing ones and the line that installs them.
func RequireTools(names ...string) error {
	var missing, packages []string
	for _, name := range names {
		if _, err := exec.LookPath(name); err == nil {
			continue
		}
		missing = append(missing, name)
		if p, ok := toolPackages[name]; ok && !slices.Contains(packages, p) {
			packages = append(packages, p)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return Missing(missing, packages)
}

// Missing makes the problem that some things of Debian packages are not installed.
func Missing(things, packages []string) error {
	return problem.New(problem.Unavailable, "tools.missing", "not installed: %s", strings.Join(things, ", ")).
		WithHint("apt-get install -y --no-install-recommends %s", strings.Join(packages, " "))
}
