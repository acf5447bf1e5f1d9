package replica

import (
	"log/slog"
	"time"

	"github.com/blixard/blixard/state"
)

// The defaults of [Config].
const (
	tickInterval = 100 * time.Millisecond
	// electionTicks and heartbeatTicks: a follower asks for votes after 1 to 2 s
	// of silence, a leader speaks ten times in that.
	electionTicks  = 10
	heartbeatTicks = 1
)

// Config of a replica. Dir and NodeID are needed.
type Config struct {
	// Dir holds the log and the snapshots; it is made when missing. Nothing else
	// may be kept there.
	Dir string
	// NodeID of the node; a directory of another node is refused.
	NodeID string
	// ClusterID the directory must belong to; empty takes the one it has, or a
	// random one for a new directory.
	ClusterID string
	// Limits of the state; the zero value means [state.DefaultLimits].
	Limits state.Limits
	// Logger; nil means slog.Default().
	Logger *slog.Logger
	// Tick is Raft's unit of time; 0 means 100 ms.
	Tick time.Duration
	// Now gives the time that is put into commands which carry none; nil means
	// time.Now.
	Now func() time.Time
	// SnapshotEntries is how many entries are applied between snapshots; 0 means
	// 100,000.
	SnapshotEntries uint64
}

// Status of a replica, for people and metrics.
type Status struct {
	ClusterID string
	Term      uint64
	Commit    uint64
	Applied   uint64
	// Leader is whether this replica leads; LeaderID is the Raft id of the one
	// that does, 0 when none is known.
	Leader   bool
	LeaderID uint64
	// LogBytes on disk, and the index of the newest snapshot.
	LogBytes      int64
	SnapshotIndex uint64
	// StorageFull is set while changes are refused for lack of space.
	StorageFull bool
}
