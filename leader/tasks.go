package leader

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/google/btree"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/state"
)

const (
	// beginMax bounds the attempts of each priority that wait for a node at once: what
	// waits further back is a task alone, which costs nothing when a node changes.
	beginMax = 256
	// stepsMax of one command.
	stepsMax = 256
	// taskDegree of the trees.
	taskDegree = 32
)

// queuedTask is a task that may begin, in the order in which they do.
type queuedTask struct {
	priority uint32
	index    uint64 // of its submission
	number   uint32 // in its array
	id       string
}

func (q queuedTask) less(o queuedTask) bool {
	return cmp.Or(cmp.Compare(o.priority, q.priority), cmp.Compare(q.index, o.index), cmp.Compare(q.number, o.number), cmp.Compare(q.id, o.id)) < 0
}

// dueTask is a task that time changes.
type dueTask struct {
	at int64 // Unix time in nanoseconds, by this leader's clock
	id string
	// index at which it was as it is.
	index uint64
}

func (d dueTask) less(o dueTask) bool {
	return cmp.Or(cmp.Compare(d.at, o.at), cmp.Compare(d.id, o.id)) < 0
}

// tasks decides what comes next of tasks. It is not safe for concurrent use.
type tasks struct {
	queue *btree.BTreeG[queuedTask]
	due   *btree.BTreeG[dueTask]
	// fresh tasks are not in due yet.
	fresh map[string]bool
	// queued and timed are where a task is in the trees.
	queued map[string]queuedTask
	timed  map[string]dueTask
	// unplaced tasks have an attempt that waits for a node, by their priority, and
	// crowds is how many of each priority do.
	unplaced map[string]uint32
	crowds   map[uint32]int
	// after has the tasks that wait for a task or an array, by its id; look are those
	// to be looked at.
	after map[string]map[string]bool
	look  map[string]bool
	// open is how many tasks of an array are not finished, and counted those tasks.
	open    map[string]int
	counted map[string]bool
}

func newTasks() *tasks {
	t := &tasks{}
	t.reset()
	return t
}

func (t *tasks) reset() {
	t.queue, t.due = btree.NewG(taskDegree, queuedTask.less), btree.NewG(taskDegree, dueTask.less)
	t.queued, t.timed = map[string]queuedTask{}, map[string]dueTask{}
	t.look, t.fresh = map[string]bool{}, map[string]bool{}
	t.unplaced, t.crowds = map[string]uint32{}, map[uint32]int{}
	t.after = map[string]map[string]bool{}
	t.open, t.counted = map[string]int{}, map[string]bool{}
}

// changed tells of one change of a task.
func (t *tasks) changed(task *blixardv1.Task, deleted bool) {
	id, st := task.GetId(), task.GetStatus()
	if q, ok := t.queued[id]; ok {
		t.queue.Delete(q)
		delete(t.queued, id)
	}
	if d, ok := t.timed[id]; ok {
		t.due.Delete(d)
		delete(t.timed, id)
	}
	waits := !deleted && st.GetState() == blixardv1.TaskState_waiting
	for _, other := range task.GetSpec().GetAfter() {
		if waits {
			if t.after[other] == nil {
				t.after[other] = map[string]bool{}
			}
			t.after[other][id] = true
		} else if delete(t.after[other], id); len(t.after[other]) == 0 {
			delete(t.after, other)
		}
	}
	if waits {
		t.look[id] = true
	}
	finished := deleted || state.Finished(st.GetState())
	t.count(task, !finished)
	if finished {
		t.lookAfter(id)
		// What comes after an array needs all of it, or one that did not succeed.
		if array := task.GetArray(); t.open[array] == 0 || st.GetState() != blixardv1.TaskState_succeeded {
			t.lookAfter(array)
		}
	}
	if st.GetVmId() == "" {
		t.placed(id)
	}
	delete(t.fresh, id)
	if deleted {
		return
	}
	if st.GetState() == blixardv1.TaskState_pending && st.GetVmId() == "" && st.GetNextTryAt() == nil {
		q := queuedTask{state.Priority(task.GetSpec().GetVm()), task.GetCreateIndex(), task.GetNumber(), id}
		t.queued[id] = q
		t.queue.ReplaceOrInsert(q)
	}
	if at, _ := dueAt(task); !at.IsZero() {
		t.fresh[id] = true
	}
}

// count notes whether a task of an array is open.
func (t *tasks) count(task *blixardv1.Task, open bool) {
	id, array := task.GetId(), task.GetArray()
	if array == "" || t.counted[id] == open {
		return
	}
	if open {
		t.counted[id] = true
		t.open[array]++
		return
	}
	delete(t.counted, id)
	if t.open[array]--; t.open[array] == 0 {
		delete(t.open, array)
	}
}

// lookAfter looks at what waits for a task or an array.
func (t *tasks) lookAfter(ref string) {
	for waiting := range t.after[ref] {
		t.look[waiting] = true
	}
}

// dueAt is when time changes a task, and how long that is at most from when the task
// became as it is; zero when time does not change it.
func dueAt(task *blixardv1.Task) (at time.Time, most time.Duration) {
	st, spec := task.GetStatus(), task.GetSpec()
	switch {
	case state.Finished(st.GetState()):
		most = state.TaskKeep(spec)
		return st.GetFinishedAt().AsTime().Add(most), most
	case st.GetVmId() == "" && st.GetNextTryAt() != nil:
		return st.GetNextTryAt().AsTime(), state.TaskWait(task)
	case st.GetVmId() != "" && st.GetStartedAt() != nil && spec.GetTimeout() != nil:
		most = spec.GetTimeout().AsDuration()
		return st.GetStartedAt().AsTime().Add(most), most
	}
	return time.Time{}, 0
}

// takeFresh notes when time changes the tasks that changed. The time in the log may be
// of another leader, whose clock was ahead of this one's.
func (t *tasks) takeFresh(view View, now time.Time) {
	for id := range t.fresh {
		task := view.Task(id)
		at, most := dueAt(task)
		if at.IsZero() {
			continue // it has changed, which is about to be told
		}
		d := dueTask{now.Add(min(at.Sub(now), most)).UnixNano(), id, task.GetModifyIndex()}
		t.timed[id] = d
		t.due.ReplaceOrInsert(d)
	}
	clear(t.fresh)
}

// attempt tells of one change of the VM of an attempt.
func (t *tasks) attempt(vm *blixardv1.VM, deleted bool) {
	if !deleted && needsPlace(vm) {
		t.wait(vm.GetTask(), state.Priority(vm.GetSpec()))
	} else {
		t.placed(vm.GetTask())
	}
}

// wait notes that a task's attempt waits for a node.
func (t *tasks) wait(id string, priority uint32) {
	if _, known := t.unplaced[id]; !known {
		t.unplaced[id] = priority
		t.crowds[priority]++
	}
}

// placed notes that it does not.
func (t *tasks) placed(id string) {
	priority, known := t.unplaced[id]
	if !known {
		return
	}
	delete(t.unplaced, id)
	if t.crowds[priority]--; t.crowds[priority] == 0 {
		delete(t.crowds, priority)
	}
}

// decide gives the steps that need no clock.
func (t *tasks) decide(view View) []*blixardv1.TaskStep {
	var steps []*blixardv1.TaskStep
	for _, id := range slices.Sorted(maps.Keys(t.look)) {
		if len(steps) >= stepsMax {
			return steps
		}
		delete(t.look, id)
		if s := afterStep(view, view.Task(id)); s != nil {
			steps = append(steps, s)
			if s.GetKind() == blixardv1.TaskStep_begin {
				t.wait(id, state.Priority(view.Task(id).GetSpec().GetVm()))
			}
		}
	}
	for len(steps) < stepsMax {
		q, ok := t.next()
		if !ok {
			break
		}
		t.queue.Delete(q)
		delete(t.queued, q.id)
		if task := view.Task(q.id); task.GetStatus().GetState() == blixardv1.TaskState_pending && task.GetStatus().GetVmId() == "" {
			t.wait(q.id, q.priority)
			steps = append(steps, step(task, blixardv1.TaskStep_begin))
		}
	}
	return steps
}

// next gives the task that begins next: the first of the highest priority of which not
// too many wait for a node.
func (t *tasks) next() (next queuedTask, ok bool) {
	next, ok = t.queue.Min()
	for ok && t.crowds[next.priority] >= beginMax {
		if next.priority == 0 {
			return next, false
		}
		below := queuedTask{priority: next.priority - 1}
		ok = false
		t.queue.AscendGreaterOrEqual(below, func(q queuedTask) bool {
			next, ok = q, true
			return false
		})
	}
	return next, ok
}

// dueSteps gives the steps of which the time has come.
func (t *tasks) dueSteps(view View, now time.Time) []*blixardv1.TaskStep {
	t.takeFresh(view, now)
	var steps []*blixardv1.TaskStep
	for len(steps) < stepsMax {
		d, ok := t.due.Min()
		if !ok || d.at > now.UnixNano() {
			break
		}
		t.due.DeleteMin()
		delete(t.timed, d.id)
		task := view.Task(d.id)
		if task.GetModifyIndex() != d.index {
			continue // it has changed, which is about to be told
		}
		kind := blixardv1.TaskStep_begin
		switch st := task.GetStatus(); {
		case state.Finished(st.GetState()):
			kind = blixardv1.TaskStep_forget
		case st.GetVmId() != "":
			kind = blixardv1.TaskStep_expire
		default:
			t.wait(d.id, state.Priority(task.GetSpec().GetVm()))
		}
		steps = append(steps, step(task, kind))
	}
	return steps
}

// refused tells that a step was not taken, because the task had changed.
func (t *tasks) refused(id string) { t.placed(id) }

func step(task *blixardv1.Task, kind blixardv1.TaskStep_Kind) *blixardv1.TaskStep {
	return &blixardv1.TaskStep{Kind: kind, TaskId: task.GetId(), TaskModifyIndex: task.GetModifyIndex()}
}

// afterStep gives what becomes of a task that comes after others; nil while it waits.
func afterStep(view View, task *blixardv1.Task) *blixardv1.TaskStep {
	if task.GetStatus().GetState() != blixardv1.TaskState_waiting {
		return nil
	}
	wait := false
	for _, ref := range task.GetSpec().GetAfter() {
		others := view.TasksNamed(ref)
		name := ref
		failed := len(others) == 0 // it was forgotten: nobody knows any more
		for _, o := range others {
			switch st := o.GetStatus().GetState(); {
			case !state.Finished(st):
				wait = true
			case st != blixardv1.TaskState_succeeded:
				failed, name = true, o.GetName()
			}
		}
		if failed {
			s := step(task, blixardv1.TaskStep_abandon)
			s.Reference = "task " + name
			return s
		}
	}
	if wait {
		return nil
	}
	return step(task, blixardv1.TaskStep_begin)
}

func stepCommand(steps []*blixardv1.TaskStep) *blixardv1.Command {
	return &blixardv1.Command{Change: &blixardv1.Command_StepTasks{StepTasks: &blixardv1.StepTasksCommand{Steps: steps}}}
}

// taskLevel is the feature level of StepTasksCommand.
var taskLevel = state.Level(stepCommand(nil))

// TasksDue gives the commands for tasks of which the time has come: of the wall clock,
// as it is in the log.
func (c *Core) TasksDue(view View, now time.Time) []*blixardv1.Command {
	if view.FeatureLevel() < taskLevel {
		return nil
	}
	if steps := c.tasks.dueSteps(view, now); len(steps) > 0 {
		return []*blixardv1.Command{stepCommand(steps)}
	}
	return nil
}
