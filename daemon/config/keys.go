package config

import (
	"time"

	"github.com/blixard/blixard/internal/units"
)

// Key is one setting: a row of the table from which all else is made.
type Key struct {
	// Name in the file, with a point between table and key.
	Name string
	// Doc is a sentence or more for the reference page; its first sentence is the
	// flag's help.
	Doc string
	// Default as a person would write it; DefaultDoc replaces it in the help
	// where it depends on the host.
	Default    func(h Host) string
	DefaultDoc string
	// field gives where the value goes: a *string, *uint32, *units.Size or
	// *time.Duration.
	field func(c *Config) any
	// check gives the reason why a value can't be used, and how to mend it.
	check func(c *Config) (reason, hint string)
	// path values are made absolute.
	path bool
}

// Bounds of the values below.
const (
	leaseTTLMin        = 2 * time.Second
	leaseTTLMax        = 5 * time.Minute
	leaseMarginMin     = 100 * time.Millisecond
	consoleLogSizeMin  = 64 * units.KiB
	consoleLogSizeMax  = units.GiB
	consoleLogsMax     = 100
	readyTimeoutMin    = time.Second
	readyTimeoutMax    = time.Hour
	bootTriesMax       = 20
	bootParallelMax    = 4096
	shutdownMax        = 10 * time.Minute
	reservedCPUsMax    = 4096
	replaceAfterMin    = 5 * time.Second
	snapshotEntriesMax = 100_000_000
	// stormPercentMax means never to wait.
	stormPercentMax = 100
	// snapshotMiBMax is 1 TiB.
	snapshotMiBMax = 1 << 20
	// snapshotIntervalMin keeps the writing of snapshots a small part of all writing.
	snapshotIntervalMin = time.Minute
	snapshotIntervalMax = 30 * 24 * time.Hour
	// trailingEntriesMax of some 500 bytes each.
	trailingEntriesMax = 1_000_000
	replaceAfterMax    = 24 * time.Hour
)

func fixed(value string) func(Host) string { return func(Host) string { return value } }

// keys is the table, in the order of the page.
var keys = []Key{
	{
		Name: "data_dir", path: true, field: func(c *Config) any { return &c.DataDir },
		Doc:        "Directory of the node's state: log, disks of VMs, console logs. One daemon at a time may use it.",
		Default:    func(h Host) string { return h.User.DataDir() },
		DefaultDoc: "/var/lib/blixard as root, else ~/.local/share/blixard",
	},
	{
		Name: "socket", path: true, field: func(c *Config) any { return &c.Socket },
		Doc:        "Unix socket for the CLI and other local clients. Its path may be of any length.",
		Default:    func(Host) string { return "" },
		DefaultDoc: "/run/blixard/blixard.sock as root, else $XDG_RUNTIME_DIR/blixard/blixard.sock or blixard.sock in data_dir",
	},
	{
		Name: "bundle_dir", path: true, field: func(c *Config) any { return &c.BundleDir },
		Doc:        "Directory of the guest bundle: kernels, initramfs and built-in images. Empty means that the bundle beside the program or in cache_dir is used.",
		Default:    fixed(""),
		DefaultDoc: "searched for, see `blixard bundle show`",
	},
	{
		Name: "cache_dir", path: true, field: func(c *Config) any { return &c.CacheDir },
		Doc:        "Directory for what can be fetched or built again. Nothing is lost with it.",
		Default:    func(h Host) string { return h.User.CacheDir() },
		DefaultDoc: "/var/cache/blixard as root, else ~/.cache/blixard",
	},
	{
		Name: "admin_group", field: func(c *Config) any { return &c.AdminGroup }, check: checkGroup,
		Doc:     "Group whose members may use the socket, beside root and the daemon's own user. It need not exist. Members can do with VMs whatever root can.",
		Default: fixed("blixard"),
	},
	{
		Name: "shutdown_timeout", field: func(c *Config) any { return &c.ShutdownTimeout },
		check:   durationRange("shutdown_timeout", func(c *Config) time.Duration { return c.ShutdownTimeout }, time.Second, shutdownMax),
		Doc:     "How long the daemon takes at most to finish calls and close its log when it is told to end. VMs run on all the same.",
		Default: fixed("10s"),
	},
	{
		Name: "node.name", field: func(c *Config) any { return &c.Node.Name }, check: checkNodeName,
		Doc:        "Name of the node. Lower-case letters, digits and dashes, at most 63.",
		Default:    func(h Host) string { return nodeName(h.Hostname) },
		DefaultDoc: "the host's name up to its first point",
	},
	{
		Name: "node.failure_domain", field: func(c *Config) any { return &c.Node.FailureDomain }, check: checkFailureDomain,
		Doc:        "What the node shares its fate with, such as a rack or a room: voters are spread over them where there is a choice. Lower-case letters, digits and dashes, at most 63.",
		Default:    fixed(""),
		DefaultDoc: "the node alone",
	},
	{
		Name: "node.labels", field: func(c *Config) any { return &c.Node.Labels }, check: checkLabels,
		Doc:        "Labels of the node, KEY=VALUE with commas between, such as disk=ssd,zone=a: VMs choose nodes by them. `blixard node label` adds more while the node runs, and wins.",
		Default:    fixed(""),
		DefaultDoc: "none",
	},
	{
		Name: "node.pool", field: func(c *Config) any { return &c.Node.Pool }, check: checkPool,
		Doc:        "Pool that the node belongs to, such as gpu: the same as the label pool, which `blixard vm create --pool` asks for. Lower-case letters, digits and dashes, at most 63.",
		Default:    fixed(""),
		DefaultDoc: "none",
	},
	{
		Name: "node.bind", field: func(c *Config) any { return &c.Node.Bind }, check: checkAddress("node.bind", func(c *Config) string { return c.Node.Bind }),
		Doc:     "Address for gRPC and the cluster's traffic, HOST:PORT, always by TLS. An empty host means all addresses of the host; port 0 takes a free one and keeps it.",
		Default: fixed(":7700"),
	},
	{
		Name: "node.https_bind", field: func(c *Config) any { return &c.Node.HTTPSBind }, check: checkAddress("node.https_bind", func(c *Config) string { return c.Node.HTTPSBind }),
		Doc:        "Address for JSON over HTTPS and for health checks, HOST:PORT.",
		Default:    fixed(""),
		DefaultDoc: "the port after that of node.bind",
	},
	{
		Name: "node.advertise", field: func(c *Config) any { return &c.Node.Advertise },
		Doc:        "Address that the other nodes are told, HOST or HOST:PORT.",
		Default:    fixed(""),
		DefaultDoc: "the host of node.bind, else the host's address towards its default route",
	},
	{
		Name: "node.reserved_memory", field: func(c *Config) any { return &c.Node.ReservedMemory },
		Doc:     "Memory that VMs may not have, kept for the host. All else may be given to VMs, once.",
		Default: fixed("512MiB"),
	},
	{
		Name: "node.reserved_cpus", field: func(c *Config) any { return &c.Node.ReservedCPUs }, check: checkReservedCPUs,
		Doc:     "CPUs that VMs may not have, kept for the host. Without KVM a virtual CPU is a thread like any other.",
		Default: fixed("0"),
	},
	{
		Name: "cluster.voters", field: func(c *Config) any { return &c.Cluster.Voters }, check: checkVoters,
		Doc:     "How many nodes vote, 1, 3 or 5, as long as there are so many. It counts on the node that leads.",
		Default: fixed("3"),
	},
	{
		Name: "cluster.replace_after", field: func(c *Config) any { return &c.Cluster.ReplaceAfter },
		check:   durationRange("cluster.replace_after", func(c *Config) time.Duration { return c.Cluster.ReplaceAfter }, replaceAfterMin, replaceAfterMax),
		Doc:     "How long a voter may be silent before a stand-by takes its place. It counts on the node that leads.",
		Default: fixed("5m"),
	},
	{
		Name: "cluster.peers", field: func(c *Config) any { return &c.Cluster.Peers }, check: checkPeers,
		Doc:        "Addresses of members, HOST:PORT and commas between, that a node which is alone joins at its start by cluster.join_token_file. A member takes no notice of it.",
		Default:    fixed(""),
		DefaultDoc: "none: `blixard cluster join` does it by hand",
	},
	{
		Name: "cluster.join_token_file", path: true, field: func(c *Config) any { return &c.Cluster.JoinTokenFile },
		Doc:        "File with the token for cluster.peers, which its owner alone may read.",
		Default:    fixed(""),
		DefaultDoc: "none",
	},
	{
		Name: "cluster.snapshot_entries", field: func(c *Config) any { return &c.Cluster.SnapshotEntries },
		check:   countRange("cluster.snapshot_entries", func(c *Config) uint32 { return c.Cluster.SnapshotEntries }, snapshotEntriesMax),
		Doc:     "How many changes this node applies before it writes a snapshot and drops the log before it; it also waits until the log is four times as large as a snapshot, or has 256 MiB.",
		Default: fixed("100000"),
	},
	{
		Name: "cluster.snapshot_mib", field: func(c *Config) any { return &c.Cluster.SnapshotMiB },
		check:   countRange("cluster.snapshot_mib", func(c *Config) uint32 { return c.Cluster.SnapshotMiB }, snapshotMiBMax),
		Doc:     "How many MiB of changes are as good a reason for a snapshot, if they are four times as large as one or more than 256.",
		Default: fixed("64"),
	},
	{
		Name: "cluster.snapshot_interval", field: func(c *Config) any { return &c.Cluster.SnapshotInterval },
		check:   durationRange("cluster.snapshot_interval", func(c *Config) time.Duration { return c.Cluster.SnapshotInterval }, snapshotIntervalMin, snapshotIntervalMax),
		Doc:     "After how long a snapshot is written if there was any change since the last.",
		Default: fixed("24h"),
	},
	{
		Name: "cluster.trailing_entries", field: func(c *Config) any { return &c.Cluster.TrailingEntries },
		check:   countRange("cluster.trailing_entries", func(c *Config) uint32 { return c.Cluster.TrailingEntries }, trailingEntriesMax),
		Doc:     "How many changes before a snapshot stay in memory for nodes that are a little late; those that are later are sent the snapshot.",
		Default: fixed("1000"),
	},
	{
		Name: "log.level", field: func(c *Config) any { return &c.Log.Level }, check: oneOf(func(c *Config) string { return c.Log.Level }, "debug", "info", "warn", "error"),
		Doc:     "Least level of what the daemon logs: debug, info, warn or error.",
		Default: fixed("info"),
	},
	{
		Name: "log.format", field: func(c *Config) any { return &c.Log.Format }, check: oneOf(func(c *Config) string { return c.Log.Format }, "auto", "text", "json"),
		Doc:     "Form of the daemon's log: auto, text or json. With auto it is text on a terminal and JSON elsewhere.",
		Default: fixed("auto"),
	},
	{
		Name: "lease.ttl", field: func(c *Config) any { return &c.Lease.TTL },
		check:   durationRange("lease.ttl", func(c *Config) time.Duration { return c.Lease.TTL }, leaseTTLMin, leaseTTLMax),
		Doc:     "Length of the node's lease. A lost node's VMs start elsewhere no sooner than this.",
		Default: fixed("10s"),
	},
	{
		Name: "lease.margin", field: func(c *Config) any { return &c.Lease.Margin },
		check:   durationRange("lease.margin", func(c *Config) time.Duration { return c.Lease.Margin }, leaseMarginMin, leaseTTLMax),
		Doc:     "What the leader waits beyond the end of a lease and the clocks' drift.",
		Default: fixed("1s"),
	},
	{
		Name: "lease.storm_percent", field: func(c *Config) any { return &c.Lease.StormPercent },
		check:   countRange("lease.storm_percent", func(c *Config) uint32 { return c.Lease.StormPercent }, stormPercentMax),
		Doc:     "How many nodes in a hundred may be down at once: when it are more, it is likelier that the network failed than that they did, and no VM of theirs is placed elsewhere until some are back. It counts on the node that leads.",
		Default: fixed("50"),
	},
	{
		Name: "lease.restart", field: func(c *Config) any { return &c.Lease.Restart },
		check:   durationRange("lease.restart", func(c *Config) time.Duration { return c.Lease.Restart }, leaseTTLMin, leaseTTLMax),
		Doc:     "The one long lease that is asked for before a planned restart of the daemon. VMs with on_node_loss failover outlive a restart that takes no longer.",
		Default: fixed("2m"),
	},
	{
		Name: "scheduler.strategy", field: func(c *Config) any { return &c.Scheduler.Strategy }, check: checkStrategy,
		Doc:     "How VMs that name no strategy fill the nodes: spread takes the node with the most free memory, pack the fullest one that has room. It counts on the node that leads.",
		Default: fixed("spread"),
	},
	{
		Name: "scheduler.preemption", field: func(c *Config) any { return &c.Scheduler.Preemption },
		check:   oneOf(func(c *Config) string { return c.Scheduler.Preemption }, "off", "on"),
		Doc:     "Whether a VM that finds no room takes it from VMs of lower priority: off or on. It counts on the node that leads.",
		Default: fixed("off"),
	},
	{
		Name: "scheduler.load", field: func(c *Config) any { return &c.Scheduler.Load },
		check:   oneOf(func(c *Config) string { return c.Scheduler.Load }, "on", "off"),
		Doc:     "Whether VMs are placed rather on nodes whose load is not high: on or off. It counts on the node that leads.",
		Default: fixed("on"),
	},
	{
		Name: "tasks.accept", field: func(c *Config) any { return &c.Tasks.Accept },
		check:   oneOf(func(c *Config) string { return c.Tasks.Accept }, "on", "off"),
		Doc:     "Whether the node takes tasks: on or off. What it runs already stays.",
		Default: fixed("on"),
	},
	{
		Name: "tasks.max", field: func(c *Config) any { return &c.Tasks.Max }, check: checkTasksMax,
		Doc:        "How many tasks the node runs at a time, at most.",
		Default:    fixed("0"),
		DefaultDoc: "0: as many as it has room for",
	},
	{
		Name: "console.log_size", field: func(c *Config) any { return &c.Console.LogSize }, check: checkLogSize,
		Doc:     "Size at which the console log of a VM is rotated.",
		Default: fixed("4MiB"),
	},
	{
		Name: "console.log_files", field: func(c *Config) any { return &c.Console.LogFiles },
		check:   countRange("console.log_files", func(c *Config) uint32 { return c.Console.LogFiles }, consoleLogsMax),
		Doc:     "Console logs kept of each VM, the current one included.",
		Default: fixed("3"),
	},
	{
		Name: "boot.ready_timeout", field: func(c *Config) any { return &c.Boot.ReadyTimeout },
		check:   durationRange("boot.ready_timeout", func(c *Config) time.Duration { return c.Boot.ReadyTimeout }, readyTimeoutMin, readyTimeoutMax),
		Doc:     "How long a guest may take from the start of its hypervisor until it says it is ready. A boot that takes longer counts as hung and is tried again.",
		Default: fixed("1m"),
	},
	{
		Name: "boot.tries", field: func(c *Config) any { return &c.Boot.Tries },
		check:   countRange("boot.tries", func(c *Config) uint32 { return c.Boot.Tries }, bootTriesMax),
		Doc:     "How often a hung boot is tried in all before the VM counts as failed.",
		Default: fixed("3"),
	},
	{
		Name: "boot.parallel", field: func(c *Config) any { return &c.Boot.Parallel },
		check:   countUpTo("boot.parallel", func(c *Config) uint32 { return c.Boot.Parallel }, bootParallelMax),
		Doc:     "How many VMs of the node boot at once; others wait until one is ready, those of the highest priority first. 0 is twice the processors.",
		Default: fixed("0"),
	},
	{
		Name: "qemu.path", field: func(c *Config) any { return &c.QEMU.Path },
		Doc:     "The QEMU program, as a path or as a name that is looked up in PATH.",
		Default: fixed("qemu-system-x86_64"),
	},
	{
		Name: "network.default", field: func(c *Config) any { return &c.Network.Default }, check: checkNetworkName,
		Doc:     "Network of VMs that name none; it counts on the node that leads. The network \"default\" is made when a VM first needs it; \"none\" leaves such VMs without one.",
		Default: fixed("default"),
	},
	{
		Name: "network.mode", field: func(c *Config) any { return &c.Network.Mode }, check: oneOf(func(c *Config) string { return c.Network.Mode }, "auto", "nat", "user"),
		Doc:     "What networks the node can do: nat needs the rights to make network devices and packet rules; with auto the node has them where it may. Networks of type user always work.",
		Default: fixed("auto"),
	},
	{
		Name: "network.underlay", field: func(c *Config) any { return &c.Network.Underlay }, check: checkUnderlay,
		Doc:        "Address of this host by which the networks of the nodes are joined (VXLAN, UDP, not encrypted: it should be one that only the nodes reach).",
		Default:    fixed(""),
		DefaultDoc: "the address that the other nodes are told",
	},
	{
		Name: "network.vxlan_port", field: func(c *Config) any { return &c.Network.VXLANPort },
		check:   countRange("network.vxlan_port", func(c *Config) uint32 { return c.Network.VXLANPort }, 65535),
		Doc:     "UDP port of the joining; the same on all nodes.",
		Default: fixed("4789"),
	},
	{
		Name: "image.budget", field: func(c *Config) any { return &c.Image.Budget },
		Doc:     "What images may take on the node's disk in all; 0 means no bound.",
		Default: fixed("0"),
	},
	{
		Name: "image.mirrors", field: func(c *Config) any { return &c.Image.Mirrors }, check: checkMirrors,
		Doc:     "Mirrors of registries, as REGISTRY=MIRROR with commas between; they are asked first, in that order.",
		Default: fixed(""),
	},
	{
		Name: "image.ca_files", field: func(c *Config) any { return &c.Image.CAFiles },
		Doc:     "Files with authorities that sign registries, in PEM, with commas between, beside those of the host.",
		Default: fixed(""),
	},
	{
		Name: "image.docker_config", path: true, field: func(c *Config) any { return &c.Image.DockerConfig },
		Doc:        "File config.json of docker with the credentials of registries.",
		Default:    fixed(""),
		DefaultDoc: "~/.docker/config.json of the daemon's user",
	},
	{
		Name: "image.private_addresses", field: func(c *Config) any { return &c.Image.PrivateAddresses },
		check:   oneOf(func(c *Config) string { return c.Image.PrivateAddresses }, "refuse", "allow"),
		Doc:     "Whether the name of a registry may lead to a private address, such as 10.0.0.5: refuse or allow. One that is named by its address is always reached, and a name never leads to this host or to a link-local address.",
		Default: fixed("refuse"),
	},
	{
		Name: "volume.quota", field: func(c *Config) any { return &c.Volume.Quota },
		Doc:     "What volumes may take on the node's disk in all; 0 means no bound.",
		Default: fixed("0"),
	},
}

// Keys gives the table; the caller must not change it.
func Keys() []Key { return keys }
