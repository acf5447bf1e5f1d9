package agent

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
)

// scenario runs the lines of testdata against one core with a clock of its own.
type scenario struct {
	t       *testing.T
	core    *Core
	now     time.Time
	epoch   time.Time
	allocs  map[string]*blixardv1.Allocation
	actions map[string]Action
	index   uint64
}

func newScenario(t *testing.T) *scenario {
	epoch := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return &scenario{
		t: t, now: epoch, epoch: epoch,
		core:    NewCore(Limits{}, "tcg", func() []byte { return []byte("0123456789abcdef") }),
		allocs:  map[string]*blixardv1.Allocation{},
		actions: map[string]Action{},
	}
}

func TestCore(t *testing.T) {
	datadriven.Walk(t, "testdata/core", func(t *testing.T, path string) {
		s := newScenario(t)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			s.t = t
			return s.run(d)
		})
	})
}

func arg(d *datadriven.TestData, key, def string) string {
	for _, a := range d.CmdArgs {
		if a.Key == key && len(a.Vals) > 0 {
			return a.Vals[0]
		}
	}
	return def
}

func has(d *datadriven.TestData, key string) bool {
	for _, a := range d.CmdArgs {
		if a.Key == key {
			return true
		}
	}
	return false
}

func (s *scenario) run(d *datadriven.TestData) string {
	id := arg(d, "id", "a")
	rec := s.core.Record(id)
	switch d.Cmd {
	case "boots":
		s.core.limits.Boots, _ = strconv.Atoi(arg(d, "most", "1"))
	case "desire":
		s.desire(d, id)
	case "drop":
		delete(s.allocs, id)
		s.core.DropAllocation(id)
	case "synced":
		s.core.Synced()
	case "resync":
		s.core.Resync(map[string]bool{id: true})
	case "advance":
		by, err := time.ParseDuration(arg(d, "by", "1s"))
		if err != nil {
			s.t.Fatal(err)
		}
		s.now = s.now.Add(by)
	case "done":
		s.done(d, id)
	case "ready":
		s.core.GuestReady(id, s.boots(d, rec), ReadyInfo{BootID: arg(d, "boot-id", "b1"), KernelRelease: "6.1"}, s.now)
	case "goodbye":
		code, _ := strconv.Atoi(arg(d, "code", "0"))
		s.core.GuestExited(id, s.boots(d, rec), &blixardv1.GuestExit{
			Code: int32(code), Reason: arg(d, "reason", "exit"), Message: arg(d, "message", ""),
		}, s.now)
	case "ended":
		code, _ := strconv.Atoi(arg(d, "code", "0"))
		sig, _ := strconv.Atoi(arg(d, "signal", "0"))
		s.core.ProcessEnded(id, s.boots(d, rec), driver.Exit{Code: code, Signal: sig, Stderr: arg(d, "stderr", "")}, !has(d, "unknown"))
	case "health":
		s.core.Health(id, s.boots(d, rec), blixardv1.Health_Enum(blixardv1.Health_Enum_value[arg(d, "is", "")]), arg(d, "says", ""))
	case "preparing":
		s.core.Preparing(id, arg(d, "says", ""))
	case "hung":
		s.core.Hung(id, s.boots(d, rec))
	case "crash":
		return s.crash(d)
	case "poll":
	default:
		s.t.Fatalf("unknown command %s", d.Cmd)
	}
	return s.transcript()
}

func (s *scenario) boots(d *datadriven.TestData, rec *blixardv1.AllocationRecord) uint64 {
	if v := arg(d, "boot", ""); v != "" {
		n, _ := strconv.ParseUint(v, 10, 64)
		return n
	}
	return rec.GetBoots()
}

func (s *scenario) desire(d *datadriven.TestData, id string) {
	s.index++
	a := &blixardv1.Allocation{Id: id, Epoch: 1, StartCount: 1, Generation: 1, ModifyIndex: s.index, Spec: &blixardv1.VMSpec{
		Restart: &blixardv1.RestartPolicy{Mode: blixardv1.RestartMode_on_failure},
	}}
	a.Desired = blixardv1.DesiredAllocation_Enum(blixardv1.DesiredAllocation_Enum_value[arg(d, "want", "run")])
	if v := arg(d, "start", ""); v != "" {
		a.StartCount, _ = strconv.ParseUint(v, 10, 64)
	}
	if v := arg(d, "restart", ""); v != "" {
		a.Spec.Restart.Mode = blixardv1.RestartMode_Enum(blixardv1.RestartMode_Enum_value[v])
	}
	if v := arg(d, "max-restarts", ""); v != "" {
		n, _ := strconv.Atoi(v)
		a.Spec.Restart.MaxRestarts = uint32(n)
	}
	if v := arg(d, "timeout", ""); v != "" {
		t, _ := time.ParseDuration(v)
		a.StopTimeout = durationpb.New(t)
	}
	if v := arg(d, "generation", ""); v != "" {
		a.Generation, _ = strconv.ParseUint(v, 10, 64)
	}
	if v := arg(d, "memory", ""); v != "" {
		n, _ := strconv.Atoi(v)
		a.Spec.MemoryMib = uint32(n)
	}
	if v := arg(d, "port", ""); v != "" {
		n, _ := strconv.Atoi(v)
		a.Spec.Ports = []*blixardv1.PublishedPort{{HostPort: uint32(n), GuestPort: 80}}
	}
	if v := arg(d, "priority", ""); v != "" {
		n, _ := strconv.Atoi(v)
		a.Spec.Scheduling = &blixardv1.Scheduling{Priority: proto.Uint32(uint32(n))}
	}
	a.Spec.Paused, a.Once = has(d, "paused"), has(d, "once")
	if has(d, "checked") {
		a.Spec.Health = &blixardv1.HealthCheck{Probe: &blixardv1.HealthCheck_Agent{Agent: true}, Keep: has(d, "keep")}
	}
	a.ForceStop = has(d, "force")
	s.allocs[id] = a
	s.core.SetAllocation(a)
}

func (s *scenario) done(d *datadriven.TestData, id string) {
	a, ok := s.actions[id]
	if !ok {
		s.t.Fatalf("%s: no action in flight for %s", d.Pos, id)
	}
	delete(s.actions, id)
	done := Done{Action: a, Rung: arg(d, "rung", ""), Gone: has(d, "gone")}
	switch arg(d, "err", "") {
	case "":
	case "invalid":
		done.Err = problem.New(problem.Invalid, "image.unknown", "no image x").WithHint("build it")
	case "disk":
		done.Err = problem.New(problem.Unavailable, "disk.full", "no space")
	default:
		done.Err = errors.New(arg(d, "err", ""))
	}
	if v := arg(d, "image", ""); v != "" {
		done.Image = &blixardv1.Image{Name: v, Digest: "sha256:" + v}
	}
	if done.Err == nil && (a.Kind == ActionStart || a.Kind == ActionAdopt) && !done.Gone {
		done.Started = &blixardv1.SupervisedProcess{StartedAt: timestamppb.New(s.now)}
	}
	s.core.ActionDone(done, s.now)
}

// crash gives the records that were durable to a new core: process says what the
// supervisor still knows of each.
func (s *scenario) crash(d *datadriven.TestData) string {
	old := s.core
	s.core = NewCore(Limits{}, "tcg", old.newChannel)
	s.actions = map[string]Action{}
	for id, i := range old.instances {
		if i.rec == nil {
			continue
		}
		var p *blixardv1.SupervisedProcess
		switch arg(d, "process", "running") {
		case "running":
			p = &blixardv1.SupervisedProcess{StartedAt: timestamppb.New(s.now)}
		case "exited":
			p = &blixardv1.SupervisedProcess{Exited: true, Exit: &blixardv1.ProcessExit{Code: -1, Signal: 9}}
		}
		s.core.Recover(i.rec, p)
		_ = id
	}
	for _, a := range s.allocs {
		if !has(d, "forgotten") {
			s.core.SetAllocation(a)
		}
	}
	if !has(d, "unsynced") {
		s.core.Synced()
	}
	return s.transcript()
}

// transcript polls and prints all that came of it.
func (s *scenario) transcript() string {
	var b strings.Builder
	for _, a := range s.core.Poll(s.now) {
		fmt.Fprintf(&b, "-> %s\n", a)
		if a.Kind != ActionCancel {
			s.actions[a.Record.GetAllocation().GetId()] = a
		}
	}
	for _, r := range s.core.TakeDirty() {
		if len(r.GetChannel()) != 16 && r.GetBoots() > 0 {
			s.t.Errorf("record of %s has no channel", r.GetAllocation().GetId())
		}
	}
	for _, r := range s.core.TakeReports() {
		fmt.Fprintf(&b, "report %s %s\n", r.GetAllocationId(), reportText(r))
	}
	if w := s.core.NextWake(); !w.IsZero() {
		fmt.Fprintf(&b, "wake +%v\n", w.Sub(s.now))
	}
	if b.Len() == 0 {
		return "nothing\n"
	}
	return b.String()
}

func reportText(r *blixardv1.AllocationReport) string {
	if r.GetRemoved() {
		return "removed"
	}
	st := r.GetStatus()
	s := fmt.Sprintf("%s (%s: %s)", st.GetState(), st.GetReason(), st.GetMessage())
	if st.ExitCode != nil {
		s += fmt.Sprintf(" exit=%d", st.GetExitCode())
	}
	if st.GetRestarts() > 0 {
		s += fmt.Sprintf(" restarts=%d", st.GetRestarts())
	}
	if st.GetNextStartAt() != nil {
		s += " next-start"
	}
	if st.GetHealth() != 0 {
		s += " " + strings.TrimSuffix(st.GetHealth().String()+":"+st.GetHealthMessage(), ":")
	}
	if st.GetPaused() {
		s += " paused"
	}
	if len(st.GetRestartNeeded()) > 0 {
		s += fmt.Sprintf(" needs-restart=%v", st.GetRestartNeeded())
	}
	if st.GetImageDigest() != "" {
		s += " image=" + st.GetImageDigest()
	}
	if st.GetObservedGeneration() > 1 {
		s += fmt.Sprintf(" generation=%d", st.GetObservedGeneration())
	}
	return s
}

// A status that was kept just before a crash was perhaps never reported: the first
// listing after the restart tells it.
func TestKeptStatusIsTold(t *testing.T) {
	c := NewCore(Limits{}, "tcg", func() []byte { return make([]byte, channelBytes) })
	alloc := &blixardv1.Allocation{
		Id: "alloc-1", Epoch: 1, ModifyIndex: 5, Desired: blixardv1.DesiredAllocation_run, Spec: &blixardv1.VMSpec{}, StartCount: 1,
		Status: &blixardv1.VMStatus{AllocationId: "alloc-1", Epoch: 1, Node: "a", State: blixardv1.AllocationState_running},
	}
	c.Recover(&blixardv1.AllocationRecord{Format: recordFormat, Allocation: alloc, Status: &blixardv1.VMStatus{
		AllocationId: "alloc-1", Epoch: 1, State: blixardv1.AllocationState_failed, StartCount: 1,
	}}, nil)
	for _, want := range []int{1, 0} {
		c.SetAllocation(alloc)
		c.Resync(map[string]bool{"alloc-1": true})
		turn := c.Turn(time.Unix(0, 0))
		if len(turn.Reports) != want || want == 1 && turn.Reports[0].GetStatus().GetState() != blixardv1.AllocationState_failed {
			t.Fatalf("want %d reports, got %v", want, turn.Reports)
		}
		alloc = proto.CloneOf(alloc)
		alloc.Status = proto.CloneOf(c.Record("alloc-1").GetStatus())
		alloc.Status.Node = "a"
	}
}
