package cli

import (
	"context"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/nearest"
	"github.com/blixard/blixard/internal/units"
)

// The settings of the cluster, as people write them.
const (
	settingCPU    = "scheduler.overcommit.cpu"
	settingMemory = "scheduler.overcommit.memory"
	settingDisk   = "scheduler.overcommit.disk"
	settingEvents = "events.keep"
	// settingDefault takes a setting back.
	settingDefault = "default"
)

var settingNames = []string{settingCPU, settingMemory, settingDisk, settingEvents}

func (a *app) clusterSettingsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "settings", Short: "Show what holds for the whole cluster", Args: exactly(),
		Long:    "Show the settings of the cluster, which are agreed on like everything else, and not a part of a node's configuration.",
		Example: "  blixard cluster settings\n  blixard cluster settings -o json | jq .cpuPercent",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Cluster().GetSettings(ctx, &blixardv1.GetSettingsRequest{})
				if err != nil {
					return err
				}
				return a.showSettings(resp.GetSettings())
			})
		},
	}
}

func (a *app) showSettings(s *blixardv1.Settings) error {
	return a.print(s, func() error {
		keep := "for ever"
		if d := s.GetEventsKeep().AsDuration(); d > 0 {
			keep = units.HumanDuration(d)
		}
		return a.facts([][2]string{
			{settingCPU, ratioText(s.GetCpuPercent())},
			{settingMemory, ratioText(s.GetMemoryPercent())},
			{settingDisk, ratioText(s.GetDiskPercent())},
			{settingEvents, keep},
		})
	})
}

func ratioText(percent uint32) string { return strconv.FormatFloat(float64(percent)/100, 'f', -1, 64) }

func (a *app) clusterSetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "set NAME=VALUE...", Short: "Change what holds for the whole cluster", Args: atLeastOne("NAME=VALUE"),
		Long: `Change settings of the cluster; others stay. "default" takes one back.

scheduler.overcommit.cpu, .memory and .disk say how much VMs may reserve in all of what a node has: 4 is four virtual CPUs for each
of the node's (0.1 to 64, by default 32), 1.5 half as much memory again (0.1 to 4, by default 1), and 2 twice the disk (0.1 to 10, by
default 1). A ratio below what is given to VMs on some node is refused.

events.keep is the age after which events are forgotten (1m to 10y); by default only their number bounds them.`,
		Example: "  blixard cluster set scheduler.overcommit.cpu=8\n  blixard cluster set scheduler.overcommit.memory=1.2 events.keep=30d",
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			var names []cobra.Completion
			for _, n := range settingNames {
				names = append(names, n+"=")
			}
			return names, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &blixardv1.ChangeSettingsRequest{IdempotencyKey: client.NewKey()}
			for _, text := range args {
				if err := parseSetting(req, text); err != nil {
					return err
				}
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Cluster().ChangeSettings(ctx, req)
				if err != nil {
					return err
				}
				return a.showSettings(resp.GetSettings())
			})
		},
	}
}

// eventsKeepMin keeps what just happened.
const eventsKeepMin = time.Minute

// parseSetting reads NAME=VALUE.
func parseSetting(req *blixardv1.ChangeSettingsRequest, text string) error {
	name, value, given := strings.Cut(text, "=")
	if !given || value == "" {
		return usageError("%q is not NAME=VALUE", text).WithHint("write `blixard cluster set %s=4`", settingCPU)
	}
	ratio := func(set **uint32, most float64) error {
		if *set != nil {
			return usageError("%s is set twice", name).WithHint("name it once")
		}
		if value == settingDefault {
			*set = proto.Uint32(0)
			return nil
		}
		f, err := strconv.ParseFloat(value, 64)
		if err != nil || !(f >= 0.1 && f <= most) || math.Abs(f*100-math.Round(f*100)) > 1e-6 {
			return usageError("%s can't be %q", name, value).WithHint("it is a number from 0.1 to %g, of two digits behind the point at most, or %s", most, settingDefault)
		}
		*set = proto.Uint32(uint32(math.Round(f * 100)))
		return nil
	}
	switch name {
	case settingCPU:
		return ratio(&req.CpuPercent, 64)
	case settingMemory:
		return ratio(&req.MemoryPercent, 4)
	case settingDisk:
		return ratio(&req.DiskPercent, 10)
	case settingEvents:
		var d durationFlag
		if value == settingDefault {
			req.EventsKeep = durationpb.New(0)
			return nil
		}
		if err := d.Set(value); err != nil || time.Duration(d) < eventsKeepMin || time.Duration(d) > 10*365*24*time.Hour {
			return usageError("%s can't be %q", name, value).WithHint("it is a time from 1m to ten years, such as 30d, or %s", settingDefault)
		}
		req.EventsKeep = durationpb.New(time.Duration(d))
		return nil
	}
	err := usageError("there is no setting %q of the cluster", name)
	if near := nearest.Of(name, settingNames); near != "" {
		return err.WithHint("did you mean %s?", near)
	}
	return err.WithHint("there are %s; what is of one node is in its configuration", strings.Join(settingNames, ", "))
}
