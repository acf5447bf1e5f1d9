package config

import (
	"strings"
	"time"

	"github.com/blixard/blixard/internal/constraint"
	"github.com/blixard/blixard/internal/units"
)

// Config is how a node shall run. Load returns it complete: every field holds a
// checked value. It is not changed afterwards, and so safe for concurrent use.
type Config struct {
	// DataDir is absolute, as all paths here are. Only one daemon may use it.
	DataDir string
	// Socket is the unix socket for clients.
	Socket string
	// BundleDir holds the guest bundle; empty means that it is searched for.
	BundleDir string
	// CacheDir holds what can be fetched or built again.
	CacheDir string
	// AdminGroup is the group whose members may use the socket.
	AdminGroup string
	// ShutdownTimeout bounds an orderly end of the daemon.
	ShutdownTimeout time.Duration

	Node      Node
	Cluster   Cluster
	Log       Log
	Lease     Lease
	Scheduler Scheduler
	Tasks     Tasks
	Console   Console
	Boot      Boot
	QEMU      QEMU
	Network   Network
	Image     Image
	Volume    Volume
}

// Network is how the node takes part in the networks of VMs.
type Network struct {
	// Default is the network of VMs that name none, or "none".
	Default string
	// Mode is auto, nat or user: with auto the node has nat where it may.
	Mode string
	// Underlay is the address by which the nodes' networks are joined; empty means the
	// one that the other nodes are told.
	Underlay string
	// VXLANPort is the UDP port of the joining.
	VXLANPort uint32
}

// Image is where images come from.
type Image struct {
	// Budget bounds what the root disks take on the node; 0 means no bound.
	Budget units.Size
	// Mirrors are REGISTRY=MIRROR with commas between, CAFiles paths with commas
	// between, and DockerConfig a config.json with credentials.
	Mirrors, CAFiles, DockerConfig string
	// PrivateAddresses is refuse or allow: whether a registry's name may lead to one.
	PrivateAddresses string
}

// MirrorMap is Mirrors by registry.
func (i Image) MirrorMap() map[string][]string {
	mirrors := map[string][]string{}
	for one := range strings.SplitSeq(i.Mirrors, ",") {
		if registry, mirror, ok := strings.Cut(strings.TrimSpace(one), "="); ok {
			mirrors[registry] = append(mirrors[registry], mirror)
		}
	}
	return mirrors
}

// CAFileList is CAFiles one by one.
func (i Image) CAFileList() []string {
	var files []string
	for one := range strings.SplitSeq(i.CAFiles, ",") {
		if one = strings.TrimSpace(one); one != "" {
			files = append(files, one)
		}
	}
	return files
}

// Volume bounds the volumes of the node.
type Volume struct {
	// Quota of all volumes together; 0 means no bound.
	Quota units.Size
}

// Node is what the node is called and what it keeps for its host.
type Node struct {
	// Name of 1 to 63 lower-case letters, digits and dashes.
	Name string
	// ReservedMemory and ReservedCPUs are kept from VMs.
	ReservedMemory units.Size
	ReservedCPUs   uint32
	// Bind is HOST:PORT for gRPC and the cluster's traffic, HTTPSBind for JSON; an
	// empty one means the port after Bind's.
	Bind, HTTPSBind string
	// FailureDomain is what the node shares its fate with, such as a rack; empty
	// means nothing.
	FailureDomain string
	// Advertise is the HOST or HOST:PORT that others are told; empty finds it.
	Advertise string
	// Labels is KEY=VALUE with commas between.
	Labels string
	// Pool is what the label pool says; empty means that there is none, or that Labels
	// has it.
	Pool string
}

// LabelMap is Labels by key, with the pool.
func (n Node) LabelMap() map[string]string {
	labels := map[string]string{}
	for one := range strings.SplitSeq(n.Labels, ",") {
		if key, value, ok := strings.Cut(strings.TrimSpace(one), "="); ok {
			labels[key] = value
		}
	}
	if n.Pool != "" {
		labels[constraint.PoolLabel] = n.Pool
	}
	return labels
}

// Scheduler is how VMs find nodes. It counts on the node that leads.
type Scheduler struct {
	// Strategy is spread or pack.
	Strategy string
	// Preemption is off or on.
	Preemption string
	// Load is on or off: whether that of nodes is looked at.
	Load string
}

// Tasks is what the node takes of tasks.
type Tasks struct {
	// Accept is on or off.
	Accept string
	// Max tasks that run at a time; 0 means no bound.
	Max uint32
}

// Cluster is what the cluster keeps to. It counts on the node that leads.
type Cluster struct {
	// Voters wanted, 1, 3 or 5.
	Voters uint32
	// ReplaceAfter: a voter that is silent for so long loses its vote to a stand-by.
	ReplaceAfter time.Duration
	// Peers are addresses of members with commas between, which a node that is alone
	// joins by the token in JoinTokenFile; empty for none.
	Peers, JoinTokenFile string
	// A snapshot is written after SnapshotEntries changes, after SnapshotMiB of them,
	// and after SnapshotInterval if there was one.
	SnapshotEntries  uint32
	SnapshotMiB      uint32
	SnapshotInterval time.Duration
	// TrailingEntries of the log stay in memory behind a snapshot.
	TrailingEntries uint32
}

// PeerList is Peers one by one.
func (c Cluster) PeerList() []string {
	var peers []string
	for peer := range strings.SplitSeq(c.Peers, ",") {
		if peer = strings.TrimSpace(peer); peer != "" {
			peers = append(peers, peer)
		}
	}
	return peers
}

// Log is the daemon's own log.
type Log struct {
	// Level is debug, info, warn or error.
	Level string
	// Format is auto (text on a terminal, else JSON), text or json.
	Format string
}

// Lease is a node's right to run exclusive VMs (docs/ARCHITECTURE.md).
type Lease struct {
	// TTL of at least 2 s.
	TTL time.Duration
	// Margin is what the leader waits beyond the end of a lease.
	Margin time.Duration
	// Restart is the one long lease asked for before a planned restart.
	Restart time.Duration
	// StormPercent of the nodes may be down before no VM of theirs is placed
	// elsewhere any more.
	StormPercent uint32
}

// Console bounds the recorded output of each VM.
type Console struct {
	LogSize  units.Size
	LogFiles uint32
}

// Boot says how many VMs boot at once, and when a boot counts as hung.
type Boot struct {
	// ReadyTimeout from the start of the hypervisor to the guest's ready.
	ReadyTimeout time.Duration
	// Tries in all before the VM counts as failed.
	Tries uint32
	// Parallel boots at most; 0 for twice the node's processors.
	Parallel uint32
}

// QEMU is the hypervisor.
type QEMU struct {
	// Path of the program, or a name that is looked up in PATH.
	Path string
}
