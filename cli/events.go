package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
)

func (a *app) eventsCommand() *cobra.Command {
	var follow bool
	var limit uint32
	var since durationFlag
	var filter blixardv1.EventFilter
	cmd := &cobra.Command{
		Use: "events [NAME]", Short: "Show what happened, to one VM or node or to all", Args: atMostOne("NAME"), ValidArgsFunction: a.completeVMs(1),
		Long: `Show the events that are kept, the newest last; with -f also those to come. With -f and -o json each event is one line. Only those
are shown that fit all of the flags.`,
		Example: `  blixard events web -f
  blixard events --kind allocation.lost --kind vm.rescheduled --since 24h
  blixard events --node n1 --actor user
  blixard events --project shop
  blixard events -o json | jq -r '.events[].kind'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			filter.Project = a.project
			if filter.Object = strings.Join(args, ""); a.project != "" {
				filter.Object = a.full(filter.Object)
			}
			if since > 0 {
				filter.Since = timestamppb.New(time.Now().Add(-time.Duration(since)))
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				if follow {
					return a.followEvents(ctx, c, &filter)
				}
				resp, err := c.Events().ListEvents(ctx, &blixardv1.ListEventsRequest{Filter: &filter, Limit: limit})
				if err != nil {
					return err
				}
				raw, err := list("events", resp.GetEvents())
				if err != nil {
					return err
				}
				return a.print(raw, func() error { return a.eventTable(resp.GetEvents()) })
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().StringArrayVar(&filter.Kinds, "kind", nil, "only events of that kind, such as allocation.lost, or all that begin with it, such as allocation; may be repeated")
	cmd.Flags().StringVar(&filter.Node, "node", "", "only events of that node")
	cmd.Flags().StringVar(&filter.Actor, "actor", "", "only what that one did, such as user:0, or all of a kind: user, agent, leader")
	cmd.Flags().Var(&since, "since", "only events of that last time, such as 2h")
	a.projectFlag(cmd)
	cmd.Flags().Uint32Var(&limit, "limit", 0, "at most so many, the newest (default: 1000)")
	return cmd
}

func (a *app) eventTable(events []*blixardv1.Event) error {
	t := &table{header: []string{"TIME", "KIND", "OBJECT", "NODE", "BY", "MESSAGE"}, shrink: []int{5, 4, 2}}
	for _, e := range events {
		t.add(eventCells(e)...)
	}
	return a.writeTable(t)
}

func eventCells(e *blixardv1.Event) []string {
	object := e.GetObjectName()
	if object == "" {
		object = e.GetObjectId()
	}
	message := e.GetMessage()
	if message == "" {
		message = e.GetReason()
	}
	return []string{e.GetTime().AsTime().Local().Format(time.DateTime), e.GetKind(), object, e.GetNode(), e.GetActor(), message}
}

func (a *app) followEvents(ctx context.Context, c *client.Client, filter *blixardv1.EventFilter) error {
	for m, err := range c.WatchEvents(ctx, filter) {
		if err != nil {
			return err
		}
		if m.GetEvent() == nil {
			continue
		}
		if err := a.printLine(m.GetEvent(), func() error {
			cells := eventCells(m.GetEvent())
			for i, cell := range cells {
				cells[i] = clean(cell)
			}
			_, err := fmt.Fprintln(a.stdout, strings.Join(cells, "  "))
			return err
		}); err != nil {
			return err
		}
	}
	return nil
}
