package scheduler

import (
	"fmt"
	"slices"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

// View is what an evaluation sees. All objects are read-only.
type View interface {
	Index() uint64
	Limits() state.Limits
	Nodes() []*blixardv1.Node
	// Member of a node; nil when it is none.
	Member(ref string) *blixardv1.Member
	// Volume and Network by name; nil when there is none.
	Volume(ref string) *blixardv1.Volume
	Network(ref string) *blixardv1.Network
}

// Reasons why a VM waits.
const (
	ReasonNoNodes    = "no_nodes"
	ReasonNoCapacity = "no_capacity"
	ReasonNoImage    = "image_unknown"
	ReasonNoKernel   = "kernel_unknown"
	ReasonNoNetwork  = "network_impossible"
	ReasonVolumes    = "volume_elsewhere"
)

// Decision is the outcome for one VM: a node, or the reason for none.
type Decision struct {
	Node *blixardv1.Node
	// Reason is a stable word and Message a sentence; empty with a node.
	Reason  string
	Message string
}

// Evaluate places one VM on the ready node with the most free memory that can
// boot it and has room; equal ones by name, so that equal input gives an equal
// plan. taken is what earlier decisions of the same plan reserved, by node id; it
// is changed when a node is chosen.
func Evaluate(view View, vm *blixardv1.VM, taken map[string]*blixardv1.Resources) Decision {
	more := view.Limits().Reservation(vm.GetSpec())
	var best *blixardv1.Node
	var bestFree uint64
	var why []string
	reason := ReasonNoNodes
	for _, n := range view.Nodes() {
		if n.GetState() != blixardv1.NodeState_ready {
			why = append(why, fmt.Sprintf("node %s is %s", n.GetName(), n.GetState()))
			continue
		}
		if n.GetDraining() {
			why = append(why, fmt.Sprintf("node %s is being emptied", n.GetName()))
			continue
		}
		if view.Member(n.GetId()).GetRole() == blixardv1.MemberRole_witness {
			why = append(why, fmt.Sprintf("node %s is a witness", n.GetName()))
			continue
		}
		if r, m := bootable(n, vm.GetSpec()); r != "" {
			reason, why = r, append(why, m)
			continue
		}
		if r, m := attachable(view, n, vm.GetSpec()); r != "" {
			reason, why = r, append(why, m)
			continue
		}
		used := sum(n.GetAllocated(), taken[n.GetId()])
		if short, ok := state.Fits(n.GetAllocatable(), used, more); !ok {
			reason = ReasonNoCapacity
			why = append(why, fmt.Sprintf("node %s has too little %s", n.GetName(), shortText(short, n.GetAllocatable(), used, more)))
			continue
		}
		free := n.GetAllocatable().GetMemoryMib() - used.GetMemoryMib()
		if best == nil || free > bestFree || free == bestFree && n.GetName() < best.GetName() {
			best, bestFree = n, free
		}
	}
	if best == nil {
		if len(why) == 0 {
			why = []string{"no node is known yet"}
		}
		return Decision{Reason: reason, Message: explain(why)}
	}
	taken[best.GetId()] = sum(taken[best.GetId()], more)
	return Decision{Node: best}
}

// explainMax bounds the sentence that goes into the state.
const explainMax = 5

func explain(why []string) string {
	if len(why) > explainMax {
		why = append(why[:explainMax:explainMax], fmt.Sprintf("and %d more", len(why)-explainMax))
	}
	return strings.Join(why, "; ")
}

// bootable reports whether the node has what the VM boots from.
func bootable(n *blixardv1.Node, spec *blixardv1.VMSpec) (reason, message string) {
	fp := n.GetFingerprint()
	// A canonical name has a registry: such an image is brought to any node.
	if !strings.Contains(spec.GetImage(), "/") && !slices.Contains(fp.GetImages(), spec.GetImage()) {
		return ReasonNoImage, fmt.Sprintf("node %s has no image %q (it has %s)", n.GetName(), spec.GetImage(), strings.Join(fp.GetImages(), ", "))
	}
	if k := spec.GetKernel(); k != "" && !slices.Contains(fp.GetKernels(), k) {
		return ReasonNoKernel, fmt.Sprintf("node %s has no kernel %q (it has %s)", n.GetName(), k, strings.Join(fp.GetKernels(), ", "))
	}
	return "", ""
}

// attachable reports whether the node can have the VM's networks, and has its
// volumes.
func attachable(view View, n *blixardv1.Node, spec *blixardv1.VMSpec) (reason, message string) {
	for _, at := range spec.GetVolumes() {
		v := view.Volume(at.GetVolume())
		if v == nil || v.GetNodeId() != "" && v.GetNodeId() != n.GetId() {
			return ReasonVolumes, fmt.Sprintf("volume %s is not on node %s", at.GetVolume(), n.GetName())
		}
	}
	for _, at := range spec.GetNetworks() {
		kind := view.Network(at.GetNetwork()).GetType().String()
		if !slices.Contains(n.GetFingerprint().GetNetworkTypes(), kind) {
			why := n.GetFingerprint().GetNetworkReason()
			if why == "" {
				why = "its version is too old"
			}
			return ReasonNoNetwork, fmt.Sprintf("node %s can't do networks of type %s: %s", n.GetName(), kind, why)
		}
	}
	return "", ""
}

func shortText(short string, allocatable, used, more *blixardv1.Resources) string {
	switch short {
	case "memory":
		return fmt.Sprintf("memory: %d MiB free, %d MiB needed (guest and hypervisor)",
			free(allocatable.GetMemoryMib(), used.GetMemoryMib()), more.GetMemoryMib())
	case "vcpus":
		return fmt.Sprintf("vcpus: %d free, %d needed",
			free(uint64(allocatable.GetVcpus()), uint64(used.GetVcpus())), more.GetVcpus())
	}
	return fmt.Sprintf("disk: %d MiB free, %d MiB needed",
		free(allocatable.GetDiskBytes(), used.GetDiskBytes())>>20, more.GetDiskBytes()>>20)
}

func free(all, used uint64) uint64 {
	if used > all {
		return 0
	}
	return all - used
}

func sum(a, b *blixardv1.Resources) *blixardv1.Resources {
	return &blixardv1.Resources{
		Vcpus:     a.GetVcpus() + b.GetVcpus(),
		MemoryMib: a.GetMemoryMib() + b.GetMemoryMib(),
		DiskBytes: a.GetDiskBytes() + b.GetDiskBytes(),
	}
}
