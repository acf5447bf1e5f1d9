package daemon

import (
	"log/slog"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/version"
)

// nodeMetrics reads the node's figures when they are asked for.
type nodeMetrics struct{ n *node }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("blixard_"+name, help, labels, nil)
}

// The figures of a node; names and units as Prometheus advises.
var (
	descInfo      = desc("node_info", "1, with the node's name, id, cluster and version.", "node", "node_id", "cluster", "version")
	descLeader    = desc("raft_leader", "1 while this node leads.")
	descHasLeader = desc("raft_has_leader", "1 while this node knows who leads.")
	descTerm      = desc("raft_term", "Term of Raft.")
	descCommit    = desc("raft_commit_index", "Newest change that is known to be committed.")
	descApplied   = desc("raft_applied_index", "Newest change that is in the state.")
	descSnapshot  = desc("raft_snapshot_index", "Newest change in a snapshot on the disk.")
	descLogBytes  = desc("raft_log_bytes", "Size of the log and its reserve on the disk.")
	descFull      = desc("raft_disk_full", "1 while changes are refused for lack of space.")
	descMembers   = desc("members", "Members of the cluster by role.", "role")
	descNodes     = desc("nodes", "Nodes of the cluster by state.", "state")
	descVMs       = desc("allocations", "VMs that are placed on this node, by state.", "state")
	descPeerSent  = desc("peer_messages_sent_total", "Messages of Raft sent to a member.", "peer")
	descPeerDrop  = desc("peer_messages_dropped_total", "Messages of Raft to a member that found no room in its queue.", "peer")
	descPeerRecv  = desc("peer_messages_received_total", "Messages of Raft from a member.", "peer")
	descPeerDials = desc("peer_dials_total", "How often a member was dialled.", "peer")
	descPeerWait  = desc("peer_messages_waiting", "Messages of Raft that wait to be sent to a member.", "peer")
	descCertEnds  = desc("certificate_end_seconds", "When the node's certificate ends, in seconds since 1970.")
)

// Describe is that of [prometheus.Collector].
func (m nodeMetrics) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(m, ch) }

// Collect is that of [prometheus.Collector].
func (m nodeMetrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	one := func(d *prometheus.Desc, yes bool) { gauge(d, map[bool]float64{true: 1}[yes]) }
	n := m.n
	st, view := n.replica.Status(), n.replica.View()
	gauge(descInfo, 1, n.cfg.Node.Name, n.data.id.NodeID, n.member.ClusterID, version.String())
	one(descLeader, st.Leader)
	one(descHasLeader, st.LeaderID != 0)
	one(descFull, st.StorageFull)
	gauge(descTerm, float64(st.Term))
	gauge(descCommit, float64(st.Commit))
	gauge(descApplied, float64(st.Applied))
	gauge(descSnapshot, float64(st.SnapshotIndex))
	gauge(descLogBytes, float64(st.LogBytes))
	gauge(descCertEnds, float64(n.keys.Load().NotAfter().Unix()))
	roles, states, vms := map[string]int{}, map[string]int{}, map[string]int{}
	for _, one := range view.Members() {
		if !one.GetRemoved() {
			roles[one.GetRole().String()]++
		}
	}
	for _, one := range view.Nodes() {
		if one.GetState() != blixardv1.NodeState_left {
			states[one.GetState().String()]++
		}
	}
	for _, a := range view.AllocationsOfNode(n.data.id.NodeID) {
		vms[a.GetStatus().GetState().String()]++
	}
	for d, counts := range map[*prometheus.Desc]map[string]int{descMembers: roles, descNodes: states, descVMs: vms} {
		for label, count := range counts {
			gauge(d, float64(count), label)
		}
	}
	m.peers(ch)
}

// peers tells of the connections to other members, by their names.
func (m nodeMetrics) peers(ch chan<- prometheus.Metric) {
	for id, st := range m.n.peers.Stats() {
		member := m.n.replica.View().MemberOfReplica(id)
		if member == nil {
			continue
		}
		name := member.GetName()
		for d, v := range map[*prometheus.Desc]uint64{descPeerSent: st.Sent, descPeerDrop: st.Dropped, descPeerRecv: st.Received, descPeerDials: st.Dials} {
			ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), name)
		}
		ch <- prometheus.MustNewConstMetric(descPeerWait, prometheus.GaugeValue, float64(st.Waiting), name)
	}
}

// metricsHandler shows what the registry gathers.
func (n *node) metricsHandler(r *prometheus.Registry) http.Handler {
	r.MustRegister(nodeMetrics{n}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(n.log.Handler(), slog.LevelWarn)})
}
