package cli

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/escapes"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

func (a *app) vmLogsCommand() *cobra.Command {
	var follow, raw bool
	var tail uint32
	var sinceText string
	cmd := &cobra.Command{
		Use: "logs NAME", Short: "Show what a VM wrote to its console", Args: exactly("NAME"), ValidArgsFunction: a.completeVMs(1),
		Long: `Show what a VM wrote to its console, as recorded on its node. On a terminal, control sequences are left out, since they come
from the guest; --raw shows them. Otherwise the bytes are given as they were written.`,
		Example: `  blixard vm logs web
  blixard vm logs web -f --tail 20
  blixard vm logs web --since 10m
  blixard vm logs web --since 2026-01-31T12:00:00Z`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &blixardv1.LogsRequest{Name: a.full(args[0]), Follow: follow}
			if cmd.Flags().Changed("tail") {
				req.TailLines = &tail
			}
			if sinceText != "" {
				from, err := parseSince(sinceText, time.Now())
				if err != nil {
					return err
				}
				req.Since = timestamppb.New(from)
			}
			return a.withVM(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				return a.logs(ctx, c, req, raw)
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().Uint32Var(&tail, "tail", 0, "only so many of the newest lines")
	cmd.Flags().StringVar(&sinceText, "since", "", "only what was written since then: a time, or how long ago as in 10m")
	cmd.Flags().BoolVar(&raw, "raw", false, "keep control sequences on a terminal")
	return cmd
}

// parseSince reads a time as RFC 3339, as date and time of this host's zone, or
// as how long ago.
func parseSince(text string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return t, nil
	}
	for _, layout := range []string{time.DateTime, "2006-01-02T15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	d, err := units.ParseDuration(strings.TrimSuffix(text, " ago"))
	if err != nil {
		return time.Time{}, usageError("--since %q is neither a time nor a duration", text).
			WithHint("write 10m, 2h, 2026-01-31T12:00:00Z or \"2026-01-31 12:00\"")
	}
	return now.Add(-d), nil
}

func (a *app) logs(ctx context.Context, c *client.Client, req *blixardv1.LogsRequest, raw bool) error {
	stream, err := c.VMs().Logs(ctx, req)
	if err != nil {
		return err
	}
	return a.copyLog(func() ([]byte, error) {
		m, err := stream.Recv()
		return m.GetData(), err
	}, raw, "the VM goes on; repeat the command with --since when the node is back")
}

// copyLog writes what comes until it ends. On a terminal control sequences are left out
// unless raw is set; hint is the way on when the connection is lost.
func (a *app) copyLog(recv func() ([]byte, error), raw bool, hint string) error {
	var strip *escapes.Stripper
	if _, terminal := terminalOf(a.stdout); terminal && !raw {
		strip = &escapes.Stripper{}
	}
	for {
		data, err := recv()
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			return nil
		case lostConnection(err):
			return problem.From(err).WithHint("%s", hint)
		default:
			return err
		}
		if strip != nil {
			data = strip.Strip(data)
		}
		if _, err := a.stdout.Write(data); err != nil {
			return err
		}
	}
}
