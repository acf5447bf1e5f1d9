package agent

import (
	"cmp"
	"container/heap"
	"slices"
	"time"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// touch lets the next poll look at an instance, of which something changed. What waits in
// the queue may wait at another place then, so it leaves that.
func (c *Core) touch(i *instance) {
	c.queue.drop(i)
	if !i.touched {
		i.touched = true
		c.touched = append(c.touched, i)
	}
}

// leave ends an instance.
func (c *Core) leave(i *instance) {
	delete(c.instances, i.id)
	c.timers.drop(i)
	c.queue.drop(i)
	if uid := i.rec.GetUid(); uid != 0 {
		if c.uids[uid]--; c.uids[uid] == 0 {
			delete(c.uids, uid)
			c.uidNext = min(c.uidNext, max(uid, uidFirst))
		}
	}
	if i.counted {
		i.counted = false
		c.booting--
	}
}

// count keeps the number of VMs that boot.
func (c *Core) count(i *instance) {
	boots := i.boots() && c.instances[i.id] == i
	switch {
	case boots && !i.counted:
		c.booting++
	case !boots && i.counted:
		c.booting--
	}
	i.counted = boots
}

// due gives the instances to look at, in the order in which they may boot: what changed,
// what waited for a time that has come, and as many of those that wait to boot as may.
func (c *Core) due(now time.Time) []*instance {
	var due []*instance
	look := func(i *instance) {
		c.timers.drop(i)
		c.queue.drop(i)
		i.wake = time.Time{}
		if !i.looked && c.instances[i.id] == i {
			i.looked = true
			due = append(due, i)
		}
	}
	touched := c.touched
	c.touched = nil
	for _, i := range touched {
		i.touched = false
		c.count(i)
		look(i)
	}
	for i := c.timers.first(); i != nil && !i.wake.After(now); i = c.timers.first() {
		look(i)
	}
	c.room = c.limits.Boots - c.booting
	for range c.room {
		i := c.queue.first()
		if i == nil {
			break
		}
		look(i)
	}
	slices.SortFunc(due, (*instance).compare)
	return due
}

// wakeAt lets an instance be looked at again at t.
func (c *Core) wakeAt(i *instance, t time.Time) {
	i.wake = t
	c.timers.put(i)
}

// boots reports whether a guest of the instance is between the start of its VMM and
// ready, or its VMM is about to be started.
func (i *instance) boots() bool {
	return i.rec.GetStatus().GetState() == blixardv1.AllocationState_starting &&
		(i.process == processRunning || i.busy == ActionStart && i.rec.GetImage() != nil)
}

// compare orders who boots first where not all may: who did not fail lately, then by
// priority, then by id, so that the order of actions is always the same.
func (i *instance) compare(j *instance) int {
	return cmp.Or(
		cmp.Compare(i.rec.GetFailedBoots(), j.rec.GetFailedBoots()),
		cmp.Compare(priority(j.alloc), priority(i.alloc)),
		cmp.Compare(i.id, j.id),
	)
}

func (i *instance) before(j *instance) bool { return i.compare(j) < 0 }

func wakesBefore(i, j *instance) bool { return i.wake.Before(j.wake) }

// defaultPriority of a spec that names none.
const defaultPriority = 50

func priority(a *blixardv1.Allocation) uint32 {
	if p := a.GetSpec().GetScheduling(); p != nil && p.Priority != nil {
		return p.GetPriority()
	}
	return defaultPriority
}

// ordered is a heap of instances that know their places in it, from 1. What it is ordered
// by must not change while an instance is in it, but right before that is dropped.
type ordered struct {
	list  []*instance
	less  func(i, j *instance) bool
	place func(*instance) *int
}

// put adds an instance that is not in it, or leaves it.
func (o *ordered) put(i *instance) {
	if *o.place(i) == 0 {
		heap.Push(o, i)
	}
}

// drop takes an instance out, or does nothing.
func (o *ordered) drop(i *instance) {
	if at := *o.place(i); at != 0 {
		heap.Remove(o, at-1)
	}
}

// first gives the least, nil when there is none.
func (o *ordered) first() *instance {
	if len(o.list) == 0 {
		return nil
	}
	return o.list[0]
}

// Len, Less, Swap, Push and Pop are those of [heap.Interface].
func (o *ordered) Len() int { return len(o.list) }

func (o *ordered) Less(a, b int) bool { return o.less(o.list[a], o.list[b]) }

func (o *ordered) Swap(a, b int) {
	o.list[a], o.list[b] = o.list[b], o.list[a]
	*o.place(o.list[a]), *o.place(o.list[b]) = a+1, b+1
}

func (o *ordered) Push(x any) {
	i := x.(*instance)
	o.list = append(o.list, i)
	*o.place(i) = len(o.list)
}

func (o *ordered) Pop() any {
	last := len(o.list) - 1
	i := o.list[last]
	o.list[last] = nil
	o.list = o.list[:last]
	*o.place(i) = 0
	return i
}
