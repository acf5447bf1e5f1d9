package config

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/blixard/blixard/internal/constraint"
	"github.com/blixard/blixard/internal/nearest"
	"github.com/blixard/blixard/internal/units"
)

var (
	nodeNamePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	groupPattern    = regexp.MustCompile(`^[a-z_][-a-z0-9_]{0,30}\$?$`)
	notNodeName     = regexp.MustCompile(`[^-a-z0-9]+`)
)

// nodeNameBytesMax is the limit of a DNS label.
const nodeNameBytesMax = 63

// nodeName makes a node's name of a host's: the first label, in the letters
// allowed; "node" when nothing of it is left.
func nodeName(hostname string) string {
	first, _, _ := strings.Cut(strings.ToLower(hostname), ".")
	name := notNodeName.ReplaceAllString(first, "-")
	if len(name) > nodeNameBytesMax {
		name = name[:nodeNameBytesMax]
	}
	if name = strings.Trim(name, "-"); name == "" {
		return "node"
	}
	return name
}

func checkNodeName(c *Config) (reason, hint string) {
	if nodeNamePattern.MatchString(c.Node.Name) {
		return "", ""
	}
	return "it is not a node's name", "use 1 to 63 lower-case letters, digits and dashes, such as " + nodeName(c.Node.Name)
}

func checkFailureDomain(c *Config) (reason, hint string) {
	if d := c.Node.FailureDomain; d == "" || nodeNamePattern.MatchString(d) {
		return "", ""
	}
	return "it is not a failure domain's name", "use 1 to 63 lower-case letters, digits and dashes, such as rack-1, or leave it empty"
}

func checkPool(c *Config) (reason, hint string) {
	if c.Node.Pool == "" {
		return "", ""
	}
	if !nodeNamePattern.MatchString(c.Node.Pool) {
		return "it is not a pool's name", "use 1 to 63 lower-case letters, digits and dashes, such as gpu, or leave it empty"
	}
	if strings.Contains(","+strings.ReplaceAll(c.Node.Labels, " ", ""), ","+constraint.PoolLabel+"=") {
		return "node.labels has the label pool, too", "say it in one of both places"
	}
	return "", ""
}

// labelsMax of a node.
const labelsMax = 64

func checkLabels(c *Config) (reason, hint string) {
	if c.Node.Labels == "" {
		return "", ""
	}
	const how = "write KEY=VALUE with commas between, such as disk=ssd,zone=a"
	seen := map[string]bool{}
	for one := range strings.SplitSeq(c.Node.Labels, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(one), "=")
		switch {
		case !ok || !constraint.IsLabel(key, value):
			return fmt.Sprintf("%q is no label", one), how
		case strings.HasPrefix(key, constraint.FactPrefix):
			return fmt.Sprintf("keys that begin with %q are facts that the node tells itself: %q", constraint.FactPrefix, key), "choose another key"
		case seen[key]:
			return fmt.Sprintf("the label %q stands there twice", key), how
		}
		seen[key] = true
	}
	if len(seen) > labelsMax {
		return fmt.Sprintf("%d labels, at most %d are possible", len(seen), labelsMax), how
	}
	return "", ""
}

func checkStrategy(c *Config) (reason, hint string) {
	if c.Scheduler.Strategy == "spread" || c.Scheduler.Strategy == "pack" {
		return "", ""
	}
	return "it is no strategy", "use spread or pack"
}

// tasksMax of a node; more have no room on any.
const tasksMax = 100_000

func checkTasksMax(c *Config) (reason, hint string) {
	if c.Tasks.Max <= tasksMax {
		return "", ""
	}
	return "it is above 100000", "leave it out to have no bound"
}

func checkNetworkName(c *Config) (reason, hint string) {
	if nodeNamePattern.MatchString(c.Network.Default) {
		return "", ""
	}
	return "it is not a network's name", "use default, none, or the name of a network: lower-case letters, digits and dashes"
}

func checkUnderlay(c *Config) (reason, hint string) {
	if c.Network.Underlay == "" {
		return "", ""
	}
	if a, err := netip.ParseAddr(c.Network.Underlay); err != nil || a.IsUnspecified() || a.IsMulticast() {
		return "it is not an address of a host", "write it as 192.0.2.10, or leave it empty"
	}
	return "", ""
}

func checkMirrors(c *Config) (reason, hint string) {
	for one := range strings.SplitSeq(c.Image.Mirrors, ",") {
		if one = strings.TrimSpace(one); one == "" {
			continue
		}
		if registry, mirror, ok := strings.Cut(one, "="); !ok || registry == "" || mirror == "" {
			return "\"" + one + "\" is not REGISTRY=MIRROR", "write docker.io=mirror.example.com, with commas between"
		}
	}
	return "", ""
}

func checkGroup(c *Config) (reason, hint string) {
	if groupPattern.MatchString(c.AdminGroup) {
		return "", ""
	}
	return "it is not a group's name", "use the name of a group as in /etc/group, such as blixard"
}

func checkReservedCPUs(c *Config) (reason, hint string) {
	if c.Node.ReservedCPUs <= reservedCPUsMax {
		return "", ""
	}
	return fmt.Sprintf("it must be from 0 to %d", reservedCPUsMax), "0 keeps none"
}

func checkLogSize(c *Config) (reason, hint string) {
	if c.Console.LogSize >= consoleLogSizeMin && c.Console.LogSize <= consoleLogSizeMax {
		return "", ""
	}
	return fmt.Sprintf("it must be from %s to %s", consoleLogSizeMin, units.Size(consoleLogSizeMax)), "4MiB keeps about 50,000 lines"
}

func durationRange(name string, get func(*Config) time.Duration, least, most time.Duration) func(*Config) (string, string) {
	return func(c *Config) (string, string) {
		if v := get(c); v >= least && v <= most {
			return "", ""
		}
		return fmt.Sprintf("it must be from %s to %s", units.FormatDuration(least), units.FormatDuration(most)),
			fmt.Sprintf("leave %s out for the default", name)
	}
}

func countRange(name string, get func(*Config) uint32, most uint32) func(*Config) (string, string) {
	return func(c *Config) (string, string) {
		if v := get(c); v >= 1 && v <= most {
			return "", ""
		}
		return fmt.Sprintf("it must be from 1 to %d", most), fmt.Sprintf("leave %s out for the default", name)
	}
}

func countUpTo(name string, get func(*Config) uint32, most uint32) func(*Config) (string, string) {
	return func(c *Config) (string, string) {
		if get(c) <= most {
			return "", ""
		}
		return fmt.Sprintf("it must be from 0 to %d", most), fmt.Sprintf("leave %s out for the default", name)
	}
}

func oneOf(get func(*Config) string, words ...string) func(*Config) (string, string) {
	return func(c *Config) (reason, hint string) {
		if slices.Contains(words, get(c)) {
			return "", ""
		}
		if near := nearest.Of(get(c), words); near != "" {
			hint = "did you mean " + near + "?"
		} else {
			hint = "choose one of these words"
		}
		return "it must be one of " + strings.Join(words, ", "), hint
	}
}

// checkAddress wants HOST:PORT with a port in figures; empty is taken where the
// default is.
func checkAddress(name string, get func(*Config) string) func(*Config) (string, string) {
	return func(c *Config) (reason, hint string) {
		v := get(c)
		if v == "" && name != "node.bind" {
			return "", ""
		}
		_, port, err := net.SplitHostPort(v)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil {
			return "it is no HOST:PORT", "write an address of the host and a port from 0 to 65535, such as 10.0.0.1:7700"
		}
		return "", ""
	}
}

func checkVoters(c *Config) (reason, hint string) {
	switch c.Cluster.Voters {
	case 1, 3, 5:
		return "", ""
	}
	return "it must be 1, 3 or 5", "3 bear the loss of one node, 5 that of two"
}

// checkPeers wants addresses with ports, and a token to join them by.
func checkPeers(c *Config) (reason, hint string) {
	if c.Cluster.Peers == "" {
		return "", ""
	}
	for _, peer := range c.Cluster.PeerList() {
		if host, port, err := net.SplitHostPort(peer); err != nil || host == "" || port == "" {
			return fmt.Sprintf("%q is no HOST:PORT", peer), "write addresses with commas between, such as 10.0.0.1:7700,10.0.0.2:7700"
		}
	}
	if c.Cluster.JoinTokenFile == "" {
		return "there is no token to join them by", "name the file of a token with --join-token-file; `blixard cluster token create` on a member makes one"
	}
	return "", ""
}
