package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/cron"
	"github.com/blixard/blixard/internal/nearest"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

func (a *app) scheduleCommand() *cobra.Command {
	return a.ofProjects(noun("schedule", "Run tasks at times", []string{"schedules"},
		a.scheduleCreateCommand(), a.scheduleListCommand(), a.scheduleStatusCommand(),
		a.scheduleChangeCommand("pause", "paused", "Let no run begin", "Let no run begin until `blixard schedule resume`. A run that is under way goes on; times that pass are not caught up."),
		a.scheduleChangeCommand("resume", "resumed", "Let runs begin again", "Let runs begin again, from the next time on."),
		a.scheduleChangeCommand("run", "runs", "Begin a run now", "Begin a run now, beside those of its times, and also of a paused schedule. What --overlap says counts: while a run is under way it is refused, queued, or takes its place."),
		a.scheduleChangeCommand("remove", "removed", "Forget schedules", "Forget a schedule. Its runs stay as tasks, and go on when they are under way."),
	))
}

// enumWord reads a word of the API.
func enumWord[E ~int32](values map[string]int32, flag, word string) (E, error) {
	v, ok := values[word]
	if !ok || v == 0 {
		var words []string
		for i := int32(1); int(i) < len(values); i++ {
			for w, n := range values {
				if n == i {
					words = append(words, w)
				}
			}
		}
		return 0, usageError("--%s is %q", flag, word).WithHint("it is %s", strings.Join(words, ", "))
	}
	return E(v), nil
}

func (a *app) scheduleCreateCommand() *cobra.Command {
	var flags taskFlags
	var overlap, catchUp string
	req := &blixardv1.CreateScheduleRequest{Spec: &blixardv1.ScheduleSpec{Task: &blixardv1.TaskSpec{}}}
	cmd := &cobra.Command{
		Use: "create NAME --cron EXPRESSION IMAGE [flags] [--] [COMMAND [ARG]...]", Short: "Run a command at times, each in a VM of its own",
		Long: `Create a schedule: at each of its times a task begins, named NAME-1, NAME-2 and so on. Flags may stand anywhere up to "--".

The expression has the five fields of cron: minute (0-59), hour (0-23), day of the month (1-31), month (1-12 or jan-dec) and day of the
week (0-7 or sun-sat). A field is *, a number, a range a-b, */n or a-b/n for each n-th, or several of these with commas. Where both days are
restricted either is enough. There are also @hourly, @daily, @weekly, @monthly, @yearly, and "@every 90s", counted from the creation.

It counts in --time-zone. When clocks change, an expression with an hour of its own is due once that day: at the first of two equal times,
and where its time does not exist, when clocks go forward. One whose hour begins with * follows the time as it goes by.

The command finds BLIXARD_SCHEDULED_AT in its environment, beside what tasks have.`,
		Example: `  blixard schedule create backup --cron '30 2 * * *' --time-zone Europe/Berlin -v data:/data busybox -- tar czf /data/b.tgz /data/db
  blixard schedule create check --cron '*/5 * * * mon-fri' --overlap skip --time-limit 4m busybox -- wget -O /dev/null http://example.org
  blixard schedule create report --cron @daily --catch-up one --keep-runs 30 busybox -- true`,
		Args: atLeastOne("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			// Flags may stand between NAME and IMAGE, too.
			if err := cmd.Flags().Parse(args[1:]); err != nil {
				return flagError(cmd, err)
			}
			image, command, err := commandLine(cmd, cmd.Flags().Args())
			if err != nil || askedForHelp(cmd) {
				return orHelp(cmd, err)
			}
			spec := req.Spec
			switch {
			case image == "":
				return usageError("IMAGE is missing").WithHint("write `blixard schedule create NAME --cron @hourly busybox -- true`")
			case spec.Cron == "":
				return usageError("--cron is missing").WithHint("say when it runs, such as --cron '*/5 * * * *' or --cron @daily")
			case cmd.Flags().Changed("keep-runs") && spec.KeepRuns == 0:
				return usageError("--keep-runs is 0").WithHint("at least the newest run is kept")
			}
			if _, why := cron.Parse(spec.Cron); why != nil {
				return why
			}
			if spec.Overlap, err = enumWord[blixardv1.Overlap_Enum](blixardv1.Overlap_Enum_value, "overlap", overlap); err != nil {
				return err
			}
			if spec.CatchUp, err = enumWord[blixardv1.CatchUp_Enum](blixardv1.CatchUp_Enum_value, "catch-up", catchUp); err != nil {
				return err
			}
			flags.spec.project = a.project
			vm, err := flags.fill(spec.Task, image, command)
			if err != nil {
				return err
			}
			req.Name, req.Project, req.Labels, req.IdempotencyKey = args[0], vm.GetProject(), vm.GetLabels(), client.NewKey()
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Schedules().CreateSchedule(ctx, req)
				if err != nil {
					return err
				}
				return a.print(resp.GetShown(), func() error {
					_, err := fmt.Fprintf(a.stdout, "%s is scheduled; next at %s\n", clean(resp.GetShown().GetSchedule().GetName()), clean(nextText(resp.GetShown())))
					return err
				})
			})
		},
	}
	flags.register(cmd)
	f := cmd.Flags()
	f.StringVar(&req.Spec.Cron, "cron", "", "when it runs: five fields, such as '*/5 * * * *', or a word such as @daily")
	f.StringVar(&req.Spec.TimeZone, "time-zone", "", "time zone of the expression, such as Europe/Berlin (default: UTC)")
	f.StringVar(&overlap, "overlap", "skip", "what becomes of a run while the one before is not finished: skip it, queue it, or replace the one before")
	f.StringVar(&catchUp, "catch-up", "none", "what becomes of times that passed while no node led: none begins, or one for all of them")
	f.Uint32Var(&req.Spec.KeepRuns, "keep-runs", 0, "keep so many finished runs at most (default: 10)")
	complete(cmd, "overlap", "skip", "queue", "replace")
	complete(cmd, "catch-up", "none", "one")
	f.SetInterspersed(false)
	return cmd
}

// nextText is the next time of a schedule, in its zone.
func nextText(s *blixardv1.ShownSchedule) string {
	if len(s.GetNext()) == 0 {
		return ""
	}
	return inZone(s.GetSchedule(), s.GetNext()[0])
}

func inZone(s *blixardv1.Schedule, t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	loc, why := cron.Zone(s.GetSpec().GetTimeZone())
	if why != nil {
		loc = time.UTC
	}
	return t.AsTime().In(loc).Format("2006-01-02 15:04:05 MST")
}

// withSchedule runs f, and names the nearest schedule when there is none of that name.
func (a *app) withSchedule(ctx context.Context, name string, f func(context.Context, *client.Client) error) error {
	return a.withClient(ctx, func(ctx context.Context, c *client.Client) error {
		err := f(ctx, c)
		if err == nil || !problem.HasCode(err, "schedule.not_found") {
			return err
		}
		list, listErr := schedules(ctx, c)
		if listErr != nil {
			return err
		}
		var names []string
		for _, s := range list {
			names = append(names, s.GetSchedule().GetName())
		}
		if near := nearest.Of(name, names); near != "" {
			return problem.From(err).WithHint("did you mean %s?", near)
		}
		return err
	})
}

// schedules gives all of them.
func schedules(ctx context.Context, c *client.Client) ([]*blixardv1.ShownSchedule, error) {
	var list []*blixardv1.ShownSchedule
	for req := (&blixardv1.ListSchedulesRequest{}); ; {
		resp, err := c.Schedules().ListSchedules(ctx, req)
		if err != nil {
			return nil, err
		}
		list = append(list, resp.GetSchedules()...)
		if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
			return list, nil
		}
	}
}

func (a *app) completeSchedules(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.ask(func(ctx context.Context, c *client.Client) (names []cobra.Completion) {
		list, _ := schedules(ctx, c)
		for _, s := range list {
			if name, fits := a.completed(s.GetSchedule(), prefix); fits {
				names = append(names, cobra.CompletionWithDesc(name, s.GetSchedule().GetSpec().GetCron()))
			}
		}
		return names
	})
}

func (a *app) scheduleListCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List schedules", Args: exactly(),
		Example: "  blixard schedule list\n  blixard schedule list -o json | jq -r '.schedules[].schedule.name'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				all, err := schedules(ctx, c)
				if err != nil {
					return err
				}
				all = slices.DeleteFunc(all, func(s *blixardv1.ShownSchedule) bool { return !a.ofProject(s.GetSchedule()) })
				raw, err := list("schedules", all)
				if err != nil {
					return err
				}
				return a.print(raw, func() error { return a.scheduleTable(all, quiet) })
			})
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "names only")
	return cmd
}

func (a *app) scheduleTable(all []*blixardv1.ShownSchedule, quiet bool) error {
	t := &table{
		header: []string{"NAME", "CRON", "TIME ZONE", "STATE", "NEXT", "RUNS", "NEWEST", "MESSAGE"}, shrink: []int{7, 1},
		color: func(column int, cell string) string {
			if column == 6 {
				return taskColor(cell)
			}
			return ""
		},
	}
	for _, shown := range all {
		s := shown.GetSchedule()
		if quiet {
			if _, err := fmt.Fprintln(a.stdout, clean(s.GetName())); err != nil {
				return err
			}
			continue
		}
		newest := ""
		if len(shown.GetTasks()) > 0 {
			newest = shown.GetTasks()[0].GetStatus().GetState().String()
		}
		message := s.GetStatus().GetMessage()
		if s.GetStatus().GetReason() == "started" {
			message = ""
		}
		t.add(s.GetName(), s.GetSpec().GetCron(), s.GetSpec().GetTimeZone(), scheduleState(s), nextText(shown), strconv.FormatUint(s.GetStatus().GetRuns(), 10), newest, message)
	}
	if quiet {
		return nil
	}
	return a.writeTable(t)
}

func scheduleState(s *blixardv1.Schedule) string {
	if s.GetStatus().GetPaused() {
		return "paused"
	}
	return "active"
}

func (a *app) scheduleStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status NAME", Aliases: []string{"show", "get"}, Short: "Show a schedule, its next times and its runs", Args: exactly("NAME"), ValidArgsFunction: a.completeSchedules,
		Example: "  blixard schedule status backup\n  blixard schedule status backup -o json | jq -r '.next[]'",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withSchedule(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Schedules().GetSchedule(ctx, &blixardv1.GetScheduleRequest{Name: a.full(args[0])})
				if err != nil {
					return err
				}
				shown := resp.GetShown()
				return a.print(shown, func() error {
					if err := a.facts(scheduleFacts(shown)); err != nil || len(shown.GetTasks()) == 0 {
						return err
					}
					if _, err := fmt.Fprintln(a.stdout); err != nil {
						return err
					}
					return a.taskTable(shown.GetTasks(), false)
				})
			})
		},
	}
}

func scheduleFacts(shown *blixardv1.ShownSchedule) [][2]string {
	s := shown.GetSchedule()
	spec, st := s.GetSpec(), s.GetStatus()
	queued := ""
	if st.GetQueued() {
		queued = "a run waits for the one before"
	}
	rows := [][2]string{
		{"Name", s.GetName()},
		{"ID", s.GetId()},
		{"State", scheduleState(s)},
		{"Cron", spec.GetCron()},
		{"Time zone", spec.GetTimeZone()},
		{"Overlap", spec.GetOverlap().String()},
		{"Catch up", spec.GetCatchUp().String()},
		{"Image", spec.GetTask().GetVm().GetImage()},
		{"Command", strings.Join(spec.GetTask().GetVm().GetCommand(), " ")},
		{"Project", s.GetProject()},
		{"Runs", fmt.Sprintf("%d, skipped %d, missed %d", st.GetRuns(), st.GetSkipped(), st.GetMissed())},
		{"Runs kept", strconv.FormatUint(uint64(spec.GetKeepRuns()), 10)},
		{"Queued", queued},
		{"Message", st.GetMessage()},
		{"Created", at(s.GetCreatedAt())},
		{"Labels", labelsText(s.GetLabels())},
	}
	for i, t := range shown.GetNext() {
		name := "Next"
		if i > 0 {
			name = "Then"
		}
		rows = append(rows, [2]string{name, fmt.Sprintf("%s (in %s)", inZone(s, t), units.HumanDuration(time.Until(t.AsTime())))})
	}
	return rows
}

func (a *app) scheduleChangeCommand(verb, done, short, long string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME...", Short: short, Long: long, Args: atLeastOne("NAME"), ValidArgsFunction: a.completeSchedules,
		Example: fmt.Sprintf("  blixard schedule %s backup", verb),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, name := range a.fullNames(args) {
				errs = append(errs, a.withSchedule(cmd.Context(), name, func(ctx context.Context, c *client.Client) error {
					shown, task, err := changeSchedule(ctx, c, verb, name)
					if err != nil {
						return err
					}
					return a.print(shown, func() error {
						words := name + " " + done
						switch {
						case task != nil:
							words += " as " + task.GetName()
						case verb == "run":
							words = "a run of " + name + " is queued"
						}
						_, err := fmt.Fprintln(a.stdout, clean(words))
						return err
					})
				}))
			}
			return errors.Join(errs...)
		},
	}
}

func changeSchedule(ctx context.Context, c *client.Client, verb, name string) (*blixardv1.ShownSchedule, *blixardv1.Task, error) {
	switch key := client.NewKey(); verb {
	case "pause":
		resp, err := c.Schedules().PauseSchedule(ctx, &blixardv1.PauseScheduleRequest{Name: name, IdempotencyKey: key})
		return resp.GetShown(), nil, err
	case "resume":
		resp, err := c.Schedules().ResumeSchedule(ctx, &blixardv1.ResumeScheduleRequest{Name: name, IdempotencyKey: key})
		return resp.GetShown(), nil, err
	case "run":
		resp, err := c.Schedules().RunSchedule(ctx, &blixardv1.RunScheduleRequest{Name: name, IdempotencyKey: key})
		return resp.GetShown(), resp.GetTask(), err
	default:
		_, err := c.Schedules().RemoveSchedule(ctx, &blixardv1.RemoveScheduleRequest{Name: name, IdempotencyKey: key})
		return &blixardv1.ShownSchedule{}, nil, err
	}
}
