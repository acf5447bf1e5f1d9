package sim

import (
	"fmt"
	"hash/fnv"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/objectname"
	"github.com/blixard/blixard/state"
)

const (
	// registers are VMs that never run, whose label the clients write and read.
	registers = 3
	// workers are VMs that shall run.
	workers   = 6
	workerMiB = 512
	valueName = "value"
	// bounded is the project of half of the workers. It has a quota, by which one of
	// them is too many.
	bounded    = "bounded"
	boundedVMs = workers/2 - 1
	// historyMax operations are checked, so that the check ends.
	historyMax = 4000
	// never is when an operation of unknown end returns.
	never = time.Duration(1<<62 - 1)
)

// operation on a register.
type operation struct {
	name string
	kind string // "set", "get", "create" or "delete"
	val  string
}

// outcome of an operation: the value read, or whether the VM was there.
type outcome struct {
	there   bool
	val     string
	unknown bool
}

type register struct {
	there bool
	val   string
}

// registersModel is what one register does when operations happen one by one.
var registersModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := make([][]porcupine.Operation, registers)
		for _, op := range history {
			n := int(op.Input.(operation).name[1] - '0')
			parts[n] = append(parts[n], op)
		}
		return parts
	},
	Init: func() any { return register{} },
	Step: func(s, in, out any) (bool, any) {
		r, op, o := s.(register), in.(operation), out.(outcome)
		next := r
		switch {
		case op.kind == "create" && !r.there:
			next = register{true, op.val}
		case op.kind == "set" && r.there:
			next.val = op.val
		case op.kind == "delete":
			next = register{}
		}
		if o.unknown {
			return true, next
		}
		if op.kind == "get" {
			return o.there == r.there && o.val == r.val, next
		}
		return o.there == r.there, next
	},
	Equal: func(a, b any) bool { return a == b },
}

// client does one operation after the other.
func (w *world) client(id int) {
	var next func()
	next = func() {
		if w.quiet || len(w.history) >= historyMax {
			return
		}
		w.operate(id, nil, 1+w.IntN(6), func() { w.after(w.tail(w.faults.think), next) })
	}
	w.after(w.between(0, time.Second), next)
}

// operate does one operation on a register and notes it. It is asked for so many
// times, of that host first, if that is not nil.
func (w *world) operate(id int, at *host, tries int, then func()) {
	w.values++
	op := operation{name: fmt.Sprintf("r%d", w.IntN(registers)), kind: "set", val: fmt.Sprint(w.values)}
	switch p := w.IntN(100); {
	case p < 45:
		op.kind, op.val = "get", ""
	case p < 52:
		op.kind = "create"
	case p < 56:
		op.kind, op.val = "delete", ""
	}
	call := w.now
	got := outcome{}
	// Until it is answered, it is one whose end is not known.
	w.open[id] = porcupine.Operation{ClientId: id, Input: op, Call: int64(call), Output: outcome{unknown: true}, Return: int64(never)}
	q := &request{tries: tries, at: at}
	q.done = func(r state.Result, err error, unknown bool) {
		end := w.now
		delete(w.open, id)
		switch {
		case err != nil && (op.kind == "get" || !unknown):
			// It was not done, and says nothing.
			w.count("operations refused")
			then()
			return
		case err != nil:
			got.unknown = true
			end = never
			w.count("operations of unknown end")
		case op.kind == "create":
			got.there = r.Problem != nil
		case op.kind != "get":
			got.there = r.Problem == nil
		}
		w.count("operations " + op.kind)
		w.history = append(w.history, porcupine.Operation{
			ClientId: id, Input: op, Call: int64(call), Output: got, Return: int64(end),
		})
		w.mix(uint64(id), uint64(len(got.val)), uint64(end))
		then()
	}
	if op.kind == "get" {
		q.view = func(v *state.View) {
			vm := v.VM(op.name)
			got = outcome{there: vm != nil, val: vm.GetLabels()[valueName]}
		}
	} else {
		q.cmd = w.change(op)
	}
	w.request(q)
}

// change makes the command of an operation, with a key of its own.
func (w *world) change(op operation) *blixardv1.Command {
	w.keys++
	cmd := &blixardv1.Command{
		Key: fmt.Sprintf("key-%d", w.keys), Actor: "client",
		Time: timestamppb.New(epoch.Add(w.now)),
	}
	labels := map[string]string{valueName: op.val}
	switch op.kind {
	case "create":
		spec := &blixardv1.VMSpec{Desired: blixardv1.DesiredState_stop, MemoryMib: 64, Vcpus: 1}
		if op.name[0] == 'w' {
			spec.Desired, spec.MemoryMib = blixardv1.DesiredState_run, workerMiB
			policy := []blixardv1.NodeLossPolicy_Enum{blixardv1.NodeLossPolicy_keep, blixardv1.NodeLossPolicy_replace}[w.IntN(2)]
			if w.chance(w.faults.exclusive) {
				policy = blixardv1.NodeLossPolicy_failover
			}
			spec.OnNodeLoss = policy
			spec.Restart = &blixardv1.RestartPolicy{Mode: blixardv1.RestartMode_Enum(1 + w.IntN(3)), MaxRestarts: 1}
			spec.RemoveOnExit = w.chance(0.1)
			if w.chance(0.5) {
				// The labels of running VMs are empty.
				spec.Scheduling = &blixardv1.Scheduling{Affinities: []*blixardv1.Affinity{{Key: valueName, Apart: w.chance(0.7), Weight: 50}}}
			}
			if p := priorityOf(op.name); p != nil {
				if spec.Scheduling == nil {
					spec.Scheduling = &blixardv1.Scheduling{}
				}
				spec.Scheduling.Priority = p
			}
		}
		cmd.Change = &blixardv1.Command_CreateVm{CreateVm: &blixardv1.CreateVMCommand{
			Id: fmt.Sprintf("vm-%d", w.keys), Name: fullName(op.name), Spec: spec, Labels: labels, Project: projectOf(op.name),
		}}
	case "set":
		cmd.Change = &blixardv1.Command_LabelVm{LabelVm: &blixardv1.LabelVMCommand{Name: op.name, Labels: labels}}
	case "delete":
		cmd.Change = &blixardv1.Command_DeleteVm{DeleteVm: &blixardv1.DeleteVMCommand{Name: fullName(op.name)}}
	case "drain", "ready":
		cmd.Change = &blixardv1.Command_DrainNode{DrainNode: w.drain(op.kind == "drain")}
	case "cordon", "uncordon":
		if w.keys%7 == 0 {
			cmd.Change = &blixardv1.Command_SetSettings{SetSettings: &blixardv1.SetSettingsCommand{
				MemoryPercent: proto.Uint32([]uint32{100, 60}[w.keys/7%2]), EventsKeep: durationpb.New(10 * time.Second),
			}}
			w.count("settings")
			break
		}
		if w.keys%2 == 0 {
			cmd.Change = &blixardv1.Command_UpdateNode{UpdateNode: w.taint(op.kind == "cordon")}
			break
		}
		cmd.Change = &blixardv1.Command_UpdateNode{UpdateNode: &blixardv1.UpdateNodeCommand{Node: w.any().nodeID, Cordoned: proto.Bool(op.kind == "cordon")}}
	case "move":
		cmd.Change = &blixardv1.Command_MoveVm{MoveVm: &blixardv1.MoveVMCommand{Name: fullName(op.name), ToNodeId: w.any().nodeID}}
	case "start", "stop":
		desired := blixardv1.DesiredState_run
		if op.kind == "stop" {
			desired = blixardv1.DesiredState_stop
		}
		cmd.Change = &blixardv1.Command_SetVmDesired{SetVmDesired: &blixardv1.SetVMDesiredCommand{Name: fullName(op.name), Desired: desired}}
	}
	return cmd
}

// projectOf chooses a VM's project by its name, so that no chance is needed. Registers
// have no quota: their model knows none.
func projectOf(name string) string {
	if name[0] == 'w' && name[len(name)-1]%2 == 0 {
		return bounded
	}
	return ""
}

// fullName of a VM: those of the bounded project have it in their names.
func fullName(name string) string { return objectname.Full(projectOf(name), name) }

// priorityOf a VM of that name: a third has none, and the others are below and above the
// default. It costs no draw, so that the runs of seeds stay what they are.
func priorityOf(name string) *uint32 {
	sum := fnv.New32a()
	_, _ = sum.Write([]byte(name))
	return []*uint32{nil, proto.Uint32(20), proto.Uint32(80)}[sum.Sum32()%3]
}

// drain begins or ends a drain: of those that begin, two of three go in steps, and most have
// a deadline. It costs no draw beyond the node.
func (w *world) drain(begin bool) *blixardv1.DrainNodeCommand {
	c := &blixardv1.DrainNodeCommand{Node: w.any().nodeID, Drain: begin}
	if begin && w.keys%3 != 0 {
		w.count("drains in steps")
		c.Gradual = true
		if w.keys%4 != 0 {
			c.Deadline = durationpb.New(time.Duration(3+w.keys%16) * time.Second)
		}
	}
	return c
}

// taint gives a node a taint that takes VMs off it, or takes it away.
func (w *world) taint(on bool) *blixardv1.UpdateNodeCommand {
	u := &blixardv1.UpdateNodeCommand{Node: w.any().nodeID}
	if on {
		w.count("taints")
		u.SetTaints = []*blixardv1.Taint{{Key: valueName, Effect: blixardv1.TaintEffect_evict}}
	} else {
		u.DropTaints = []string{valueName}
	}
	return u
}

// user makes, stops, starts, moves and deletes VMs that run, and empties nodes of them.
func (w *world) user() {
	var next func()
	next = func() {
		if w.quiet {
			return
		}
		kinds := []string{"create", "create", "create", "create", "stop", "start", "delete", "drain", "ready", "ready", "move", "move", "cordon", "uncordon"}
		op := operation{name: fmt.Sprintf("w%d", w.IntN(workers)), kind: kinds[w.IntN(len(kinds))]}
		w.request(&request{cmd: w.change(op), tries: 3, done: func(r state.Result, err error, _ bool) {
			if err == nil {
				w.count("operations on running VMs")
			}
			if r.Problem != nil && r.Problem.Code == "quota.exceeded" {
				w.count("refused by a quota")
			}
			w.after(w.tail(2*w.faults.think), next)
		}})
	}
	w.after(time.Second, next)
}
