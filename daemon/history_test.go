package daemon_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// registers are VMs that never run, whose labels are written and read, so many
	// at a time.
	registers = 4
	// callTimeout of one operation.
	callTimeout = 5 * time.Second
	// thinkTime between two operations of a client, so that a history of many
	// minutes can be checked.
	thinkTime = 3 * time.Millisecond
	// checkLimit bounds the search for a linearization.
	checkLimit = 3 * time.Minute
	// forever is when an operation ends whose answer was lost.
	forever = int64(24 * time.Hour)
)

// registerModel is registers: a write of a value, or a read of what was there.
var registerModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		var parts [][]porcupine.Operation
		at := map[string]int{}
		for _, op := range history {
			name := op.Input.(registerInput).name
			n, ok := at[name]
			if !ok {
				n = len(parts)
				at[name], parts = n, append(parts, nil)
			}
			parts[n] = append(parts[n], op)
		}
		return parts
	},
	Init: func() any { return 0 },
	Step: func(state, input, output any) (bool, any) {
		in := input.(registerInput)
		if in.write {
			return true, in.value
		}
		return output.(int) == state.(int), state
	},
}

type registerInput struct {
	name  string
	write bool
	value int
}

// history is what clients at all nodes did and saw.
type history struct {
	t     testing.TB
	begun time.Time
	// age of the registers that are used now: an operation whose end is not known
	// is looked at with those of its age only.
	age           atomic.Int64
	value, acked  atomic.Int64
	unknown, read atomic.Int64

	mu  sync.Mutex
	ops []porcupine.Operation
}

func newHistory(t testing.TB) *history { return &history{t: t, begun: time.Now()} }

func (h *history) now() int64 { return int64(time.Since(h.begun)) }

func registerName(age int64, k int) string { return fmt.Sprintf("r%d-%d", age, k) }

// renew makes the registers of the next age, through whichever node does it.
func (h *history) renew(nodes []*node) {
	h.t.Helper()
	next := h.age.Load() + 1
	for k := range registers {
		req := &blixardv1.CreateVMRequest{
			Name: registerName(next, k), Spec: &blixardv1.VMSpec{Image: "busybox", Desired: blixardv1.DesiredState_stop}, IdempotencyKey: registerName(next, k),
		}
		at := k
		eventually(h.t, "a register is made", healLimit, func() bool {
			at++
			ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
			defer cancel()
			_, err := nodes[at%len(nodes)].client.VMs().CreateVM(ctx, req)
			return err == nil || problem.HasCode(err, "vm.exists")
		})
	}
	h.age.Store(next)
}

func (h *history) add(client int, in registerInput, call, end int64, out int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
}

// work writes and reads through one node until ctx ends.
func (h *history) work(ctx context.Context, id int, n *node) {
	c, err := client.Dial(ctx, client.Config{Addr: "unix:" + n.socket, Timeout: callTimeout})
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	random := rand.New(rand.NewPCG(uint64(id), 1))
	for ctx.Err() == nil {
		if !h.operate(ctx, id, c, random) {
			id += 100 // a client whose answer was lost goes on as another
		}
		select {
		case <-time.After(thinkTime):
		case <-ctx.Done():
		}
	}
}

// operate does one operation. It gives false when it is not known whether it was
// done.
func (h *history) operate(ctx context.Context, id int, c *client.Client, random *rand.Rand) bool {
	in := registerInput{name: registerName(h.age.Load(), random.IntN(registers)), write: random.IntN(2) == 0}
	call := h.now()
	if !in.write {
		resp, err := c.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: in.name})
		if err == nil {
			seen, _ := strconv.Atoi(resp.GetVm().GetLabels()["v"])
			h.add(id, in, call, h.now(), seen)
			h.read.Add(1)
		}
		return true
	}
	in.value = int(h.value.Add(1))
	_, err := c.VMs().LabelVM(ctx, &blixardv1.LabelVMRequest{Name: in.name, Labels: map[string]string{"v": strconv.Itoa(in.value)}})
	if err != nil {
		h.add(id, in, call, forever, 0)
		h.unknown.Add(1)
		return false
	}
	h.acked.Add(1)
	h.add(id, in, call, h.now(), 0)
	return true
}

// check reads every register once more through every node, and looks for an order
// in which all that was seen makes sense.
func (h *history) check(nodes []*node) {
	h.t.Helper()
	for age := int64(1); age <= h.age.Load(); age++ {
		for k := range registers {
			for id, n := range nodes {
				call := h.now()
				resp, err := n.client.VMs().GetVM(h.t.Context(), &blixardv1.GetVMRequest{Name: registerName(age, k)})
				if err != nil {
					h.t.Fatal(err)
				}
				seen, _ := strconv.Atoi(resp.GetVm().GetLabels()["v"])
				h.add(1_000_000+id, registerInput{name: registerName(age, k)}, call, h.now(), seen)
			}
		}
	}
	if got := porcupine.CheckOperationsTimeout(registerModel, h.ops, checkLimit); got != porcupine.Ok {
		h.t.Fatalf("%d operations are %s", len(h.ops), got)
	}
	h.t.Logf("%d operations: %d changes acknowledged, %d reads, %d changes of unknown end", len(h.ops), h.acked.Load(), h.read.Load(), h.unknown.Load())
}
