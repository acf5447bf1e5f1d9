package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/constraint"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/process"
	"github.com/blixard/blixard/internal/units"
)

func (a *app) nodeCommand() *cobra.Command {
	return noun("node", "Run the node on this host, and see how it is", []string{"nodes"},
		a.nodeStartCommand(), a.nodeStatusCommand(), a.nodeStopCommand(), a.nodeListCommand(),
		a.nodeLabelCommand(), a.nodeTaintCommand(), a.nodeCordonCommand(true), a.nodeCordonCommand(false), a.nodeDrainCommand())
}

func (a *app) nodeListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the nodes of the cluster", Args: exactly(),
		Example: "  blixard node list\n  blixard node list -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Nodes().ListNodes(ctx, &blixardv1.ListNodesRequest{})
				if err != nil {
					return err
				}
				raw, err := list("nodes", resp.GetNodes())
				if err != nil {
					return err
				}
				return a.print(raw, func() error { return a.nodeTable(resp.GetNodes()) })
			})
		},
	}
}

func (a *app) nodeTable(nodes []*blixardv1.Node) error {
	t := &table{header: []string{"NAME", "STATE", "CPUS", "MEMORY", "DISK", "DRIVER", "ACCELERATOR", "VERSION", "LABELS"}, shrink: []int{8, 7, 0}}
	// Most clusters have none, and the table is wide.
	tainted := slices.ContainsFunc(nodes, func(n *blixardv1.Node) bool { return len(n.GetTaints()) > 0 })
	if tainted {
		t.header, t.shrink = slices.Insert(t.header, 8, "TAINTS"), []int{9, 8, 7, 0}
	}
	for _, n := range nodes {
		f := n.GetFingerprint()
		cells := []string{
			n.GetName(), nodeStateWords(n),
			fmt.Sprintf("%d/%d", n.GetAllocated().GetVcpus(), n.GetAllocatable().GetVcpus()),
			mib(n.GetAllocated().GetMemoryMib()) + "/" + mib(n.GetAllocatable().GetMemoryMib()), diskCell(n),
			strings.TrimSpace(f.GetDriver() + " " + f.GetDriverVersion()), f.GetAccelerator(), f.GetBlixardVersion(), labelsText(constraint.Labels(n)),
		}
		if tainted {
			cells = slices.Insert(cells, 8, taintsText(n.GetTaints()))
		}
		t.add(cells...)
	}
	return a.writeTable(t)
}

// nodeStateWords say how a node is, and whether VMs are placed on it.
func nodeStateWords(n *blixardv1.Node) string {
	words := n.GetState().String()
	if n.GetCordoned() {
		words += ", cordoned"
	}
	switch {
	case n.GetDrain().GetState() == blixardv1.DrainState_blocked:
		words += ", drain blocked"
	case n.GetDrain().GetState() == blixardv1.DrainState_done:
		words += ", drained"
	case n.GetDraining():
		words += ", draining"
	}
	if n.GetDamped() {
		words += ", unsteady"
	}
	if n.GetBusy() {
		words += ", busy"
	}
	return words
}

func taintsText(taints []*blixardv1.Taint) string {
	var words []string
	for _, t := range taints {
		words = append(words, constraint.TaintText(t))
	}
	return strings.Join(words, ",")
}

func labelsText(labels map[string]string) string {
	var words []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		words = append(words, k+"="+labels[k])
	}
	return strings.Join(words, ",")
}

// diskCell is what VMs and volumes have of a node's disk, and how much of it volumes.
func diskCell(n *blixardv1.Node) string {
	given, all, volumes := diskOf(n)
	text := given
	if all != "" {
		text += "/" + all
	}
	if volumes != "" {
		text += " (volumes " + volumes + ")"
	}
	return text
}

func diskFact(n *blixardv1.Node) string {
	given, all, volumes := diskOf(n)
	text := given + " given"
	if all != "" {
		text = given + " of " + all + " given"
	}
	if volumes != "" {
		text += ", " + volumes + " of it to volumes"
	}
	return text
}

// diskOf tells of a node's disk; all is empty where it is not bounded, and volumes without
// any.
func diskOf(n *blixardv1.Node) (given, all, volumes string) {
	given = units.Size(n.GetAllocated().GetDiskBytes() + n.GetVolumeBytes()).Human()
	if has := n.GetAllocatable().GetDiskBytes(); has != 0 {
		all = units.Size(has).Human()
	}
	if has := n.GetVolumeBytes(); has != 0 {
		volumes = units.Size(has).Human()
	}
	return given, all, volumes
}

func mib(n uint64) string { return (units.Size(n) * units.MiB).Human() }

func (a *app) nodeStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show how the node is", Args: exactly(),
		Long:    "Show how the node is that answers: which accelerator it uses and why, what is free, its log and its supervisors.",
		Example: "  blixard node status\n  blixard node status -o json | jq -r .node.fingerprint.acceleratorReason",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				st, err := c.Nodes().GetStatus(ctx, &blixardv1.GetStatusRequest{})
				if err != nil {
					return err
				}
				return a.print(st, func() error { return a.facts(nodeFacts(st)) })
			})
		},
	}
}

func nodeFacts(st *blixardv1.GetStatusResponse) [][2]string {
	n, f := st.GetNode(), st.GetNode().GetFingerprint()
	var vms []string
	for _, state := range slices.Sorted(maps.Keys(st.GetVmsByState())) {
		vms = append(vms, fmt.Sprintf("%d %s", st.GetVmsByState()[state], state))
	}
	if len(vms) == 0 {
		vms = []string{"none"}
	}
	role := "follows"
	if st.GetLeader() {
		role = "leads"
	}
	rows := [][2]string{
		{"Node", n.GetName() + " (" + n.GetId() + ")"},
		{"State", nodeStateWords(n)},
		{"Labels", labelsText(constraint.Labels(n))},
		{"Pool", constraint.Labels(n)[constraint.PoolLabel]},
		{"Taints", taintsText(n.GetTaints())},
		{"Drain", drainFact(n)},
		{"Version", st.GetVersion()},
		{"Process", fmt.Sprintf("%d, up %s", st.GetPid(), since(st.GetStartedAt()))},
		{"Data", st.GetDataDir()},
		{"Socket", st.GetSocket()},
		{"Driver", strings.TrimSpace(f.GetDriver() + " " + f.GetDriverVersion())},
		{"Accelerator", f.GetAccelerator() + ": " + f.GetAcceleratorReason()},
		{"Kernels", strings.Join(f.GetKernels(), ", ")},
		{"Images", strings.Join(f.GetImages(), ", ")},
		{"VMs", strings.Join(vms, ", ")},
		{"CPUs", fmt.Sprintf("%d of %d given", n.GetAllocated().GetVcpus(), n.GetAllocatable().GetVcpus())},
		{"Memory", fmt.Sprintf("%s of %s given", mib(n.GetAllocated().GetMemoryMib()), mib(n.GetAllocatable().GetMemoryMib()))},
		{"Disk", diskFact(n)},
		{"Load", loadFact(st)},
		{"Log", fmt.Sprintf("%s, term %d, committed %d, applied %d", role, st.GetTerm(), st.GetCommitIndex(), st.GetAppliedIndex())},
	}
	for _, s := range st.GetSupervisors() {
		text := fmt.Sprintf("process %d, up %s, %d VMs", s.GetPid(), since(s.GetStartedAt()), s.GetProcesses())
		if s.GetLeaseLeft() != nil {
			text += ", lease for " + units.HumanDuration(s.GetLeaseLeft().AsDuration())
		}
		rows = append(rows, [2]string{"Supervisor " + s.GetLane(), text})
	}
	for _, notice := range st.GetNotices() {
		rows = append(rows, [2]string{"Notice", notice})
	}
	return rows
}

// loadFact is empty when the host does not tell.
func loadFact(st *blixardv1.GetStatusResponse) string {
	if st.LoadPercent == nil {
		return ""
	}
	return fmt.Sprintf("%d %%", st.GetLoadPercent())
}

func (a *app) nodeStopCommand() *cobra.Command {
	return &cobra.Command{
		Use: "stop", Short: "Stop the node on this host; its VMs run on", Args: exactly(),
		Long:    "Stop the daemon on this host and wait for its end. Its VMs run on, and the next `blixard node start` takes them up again.",
		Example: "  blixard vm stop $(blixard vm list -q)\n  blixard node stop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), a.stopNode)
		},
	}
}

// stopNode sends SIGTERM to the daemon that answers. The process is named beyond
// doubt before it is asked a second time who it is, so that the signal can't
// reach a stranger.
func (a *app) stopNode(ctx context.Context, c *client.Client) error {
	first, err := c.Nodes().GetStatus(ctx, &blixardv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	id, err := process.Identify(int(first.GetPid()))
	if err != nil {
		return notHere(err)
	}
	h, err := process.Open(id)
	if err != nil {
		return notHere(err)
	}
	defer func() { _ = h.Close() }()
	again, err := c.Nodes().GetStatus(ctx, &blixardv1.GetStatusRequest{})
	if err != nil {
		return err
	}
	if again.GetPid() != first.GetPid() {
		return problem.New(problem.Conflict, "node.restarted", "the node was restarted meanwhile").WithHint("repeat the command")
	}
	if err := h.Signal(unix.SIGTERM); err != nil {
		return problem.New(problem.Denied, "node.stop", "process %d can't be told to stop", first.GetPid()).WithCause(err).
			WithHint("run the command as the user who started the node")
	}
	p := a.progress("node " + first.GetNode().GetName() + " is stopping")
	defer p.stop()
	ctx, cancel := a.waiting(ctx)
	defer cancel()
	if err := h.Wait(ctx); err != nil {
		return problem.New(problem.Unavailable, "deadline", "process %d has not ended yet", first.GetPid()).
			WithHint("wait longer with --timeout, or see the daemon's log")
	}
	running := first.GetVmsByState()[blixardv1.AllocationState_running.String()]
	return a.print(fields{{"node", first.GetNode().GetName()}, {"pid", strconv.Itoa(int(first.GetPid()))}}, func() error {
		text := "stopped"
		if running > 0 {
			text += fmt.Sprintf("; %d VMs run on", running)
		}
		_, err := fmt.Fprintf(a.stdout, "%s %s\n", clean(first.GetNode().GetName()), text)
		return err
	})
}

func notHere(err error) error {
	return problem.New(problem.Unavailable, "node.not_here", "the node's process is not on this host").WithCause(err).
		WithHint("run the command on the node itself")
}

// drainFact is empty without a drain.
func drainFact(n *blixardv1.Node) string {
	switch {
	case n.GetDrain() != nil:
		return drainText(n.GetDrain())
	case n.GetDraining():
		return "moving: all VMs leave at once that may leave"
	}
	return ""
}
