package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// watchQuietTries bounds the attempts in a row that brought nothing; with the
// backoff of at most a second that is about a minute without the node.
const watchQuietTries = 60

// resume follows a stream of indexed messages over its breaks.
//
// Several messages may carry one index, and a break can fall between them. So it
// asks again from before the newest index and drops what it has given already.
type resume struct {
	// index of the newest message given, and what was given at it.
	index uint64
	given map[string]bool
	// synced: what was there has been given in full. Until then a break means to
	// start over.
	synced bool
}

// begin gives the index to ask from.
func (r *resume) begin() uint64 {
	if !r.synced || r.index == 0 {
		r.index, r.given = 0, nil
		return 0
	}
	return r.index - 1
}

// fresh notes a message and reports whether it was not given before. What was
// there when the watch began comes in any order of indexes.
func (r *resume) fresh(index uint64, identity string) bool {
	switch {
	case index < r.index:
		return !r.synced
	case index > r.index || r.given == nil:
		r.index, r.given = index, map[string]bool{}
	case r.given[identity]:
		return false
	}
	r.given[identity] = true
	return true
}

// sync notes that all that was there at an index has been given, and reports whether
// that is news.
func (r *resume) sync(index uint64) bool {
	first := !r.synced
	r.synced = true
	if index > r.index {
		r.index, r.given = index, nil
	}
	return first
}

// follow opens a stream again and again and yields what handle lets through.
// handle returns whether to yield the message.
func follow[T any](ctx context.Context, open func(context.Context) (grpc.ServerStreamingClient[T], error),
	handle func(*T) bool, yield func(*T, error) bool,
) {
	wait := newBackOff()
	quiet := 0
	for {
		progress, more, err := followOnce(ctx, open, handle, yield)
		if !more {
			return
		}
		if progress {
			quiet = 0
			wait.Reset()
		}
		quiet++
		if err == nil || ctx.Err() != nil || !retriable(err) || quiet > watchQuietTries {
			if err == nil {
				err = problem.New(problem.Unavailable, "watch.ended", "the node ended the watch").WithHint("watch again")
			}
			if ctx.Err() != nil {
				err = problem.From(context.Cause(ctx))
			}
			yield(nil, err)
			return
		}
		timer := time.NewTimer(wait.NextBackOff())
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// followOnce reads one stream to its end. more is false when the consumer wants
// no more.
func followOnce[T any](ctx context.Context, open func(context.Context) (grpc.ServerStreamingClient[T], error),
	handle func(*T) bool, yield func(*T, error) bool,
) (progress, more bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := open(ctx)
	if err != nil {
		return false, true, err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			// A node that shuts down in order ends its streams.
			return progress, true, problem.New(problem.Unavailable, "watch.ended", "the node ended the watch").WithHint("watch again")
		}
		if err != nil {
			return progress, true, err
		}
		progress = true
		if handle(m) && !yield(m, nil) {
			return progress, false, nil
		}
	}
}

// WatchVMs yields what is there, one message with synced set, then every change.
// An empty name means all VMs. It resumes by itself after a break, without
// leaving out or repeating a change, though a break before synced gives what is
// there again. It ends with an error: that of ctx, or of a node that is gone for
// about a minute.
func (c *Client) WatchVMs(ctx context.Context, name string) iter.Seq2[*blixardv1.WatchVMsResponse, error] {
	return func(yield func(*blixardv1.WatchVMsResponse, error) bool) {
		var r resume
		follow(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[blixardv1.WatchVMsResponse], error) {
			return c.VMs().WatchVMs(ctx, &blixardv1.WatchVMsRequest{Name: name, AfterIndex: r.begin()})
		}, func(m *blixardv1.WatchVMsResponse) bool {
			if m.GetSynced() {
				return r.sync(m.GetIndex())
			}
			return r.fresh(m.GetIndex(), fmt.Sprintf("%s %t", m.GetVm().GetId(), m.GetDeleted()))
		}, yield)
	}
}

// WatchTasks is WatchVMs for tasks; a name may be of an array, too.
func (c *Client) WatchTasks(ctx context.Context, name string) iter.Seq2[*blixardv1.WatchTasksResponse, error] {
	return func(yield func(*blixardv1.WatchTasksResponse, error) bool) {
		var r resume
		follow(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[blixardv1.WatchTasksResponse], error) {
			return c.Tasks().WatchTasks(ctx, &blixardv1.WatchTasksRequest{Name: name, AfterIndex: r.begin()})
		}, func(m *blixardv1.WatchTasksResponse) bool {
			if m.GetSynced() {
				return r.sync(m.GetIndex())
			}
			return r.fresh(m.GetIndex(), fmt.Sprintf("%s %t", m.GetTask().GetId(), m.GetDeleted()))
		}, yield)
	}
}

// WatchGroups is WatchVMs for groups.
func (c *Client) WatchGroups(ctx context.Context, name string) iter.Seq2[*blixardv1.WatchGroupsResponse, error] {
	return func(yield func(*blixardv1.WatchGroupsResponse, error) bool) {
		var r resume
		follow(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[blixardv1.WatchGroupsResponse], error) {
			return c.Groups().WatchGroups(ctx, &blixardv1.WatchGroupsRequest{Name: name, AfterIndex: r.begin()})
		}, func(m *blixardv1.WatchGroupsResponse) bool {
			if m.GetSynced() {
				return r.sync(m.GetIndex())
			}
			return r.fresh(m.GetIndex(), fmt.Sprintf("%s %t", m.GetGroup().GetId(), m.GetDeleted()))
		}, yield)
	}
}

// WatchEvents yields the events that are kept, one message with synced set, then
// every further one; see WatchVMs. No filter means all.
func (c *Client) WatchEvents(ctx context.Context, filter *blixardv1.EventFilter) iter.Seq2[*blixardv1.WatchEventsResponse, error] {
	return func(yield func(*blixardv1.WatchEventsResponse, error) bool) {
		var r resume
		follow(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[blixardv1.WatchEventsResponse], error) {
			return c.Events().WatchEvents(ctx, &blixardv1.WatchEventsRequest{Filter: filter, AfterIndex: r.begin()})
		}, func(m *blixardv1.WatchEventsResponse) bool {
			if m.GetSynced() {
				first := !r.synced
				r.synced = true
				return first
			}
			return r.fresh(m.GetEvent().GetIndex(), fmt.Sprint(m.GetEvent().GetNumber()))
		}, yield)
	}
}

// WaitVM watches a VM until done returns true or an error, and gives its newest
// form. deleted is set when the VM is gone, after which nothing more can come:
// if done does not want that, the answer is a problem of kind NotFound. name may
// be an id, which never means another VM.
func (c *Client) WaitVM(ctx context.Context, name string, done func(vm *blixardv1.VM, deleted bool) (bool, error)) (*blixardv1.VM, error) {
	var last *blixardv1.VM
	for m, err := range c.WatchVMs(ctx, name) {
		if err != nil {
			return last, err
		}
		if m.GetSynced() {
			if last == nil {
				return nil, noVM(name)
			}
			continue
		}
		last = m.GetVm()
		ok, err := done(last, m.GetDeleted())
		if ok || err != nil {
			return last, err
		}
		if m.GetDeleted() {
			return last, noVM(name)
		}
	}
	return last, problem.From(context.Cause(ctx))
}

func noVM(name string) error {
	return problem.New(problem.NotFound, "vm.not_found", "there is no VM %q", name).WithHint("`blixard vm list` shows what there is")
}

// AllVMs lists all VMs, page by page. The pages are not of one index: a VM made
// or deleted meanwhile may be in the answer or not.
func (c *Client) AllVMs(ctx context.Context) ([]*blixardv1.VM, error) {
	vms, _, err := c.pages(ctx, false)
	return vms, err
}

// StaleVMs lists the VMs that the answering node knows of by itself, also without
// a leader. The first page comes with the index and the age of what it knows.
func (c *Client) StaleVMs(ctx context.Context) ([]*blixardv1.VM, *blixardv1.ListVMsResponse, error) {
	return c.pages(ctx, true)
}

func (c *Client) pages(ctx context.Context, stale bool) (vms []*blixardv1.VM, first *blixardv1.ListVMsResponse, err error) {
	token := ""
	for {
		page, err := c.VMs().ListVMs(ctx, &blixardv1.ListVMsRequest{PageToken: token, Stale: stale})
		if err != nil {
			return nil, nil, err
		}
		if first == nil {
			first = page
		}
		vms = append(vms, page.GetVms()...)
		if token = page.GetNextPageToken(); token == "" {
			return vms, first, nil
		}
	}
}
