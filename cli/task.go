package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/nearest"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

func (a *app) taskCommand() *cobra.Command {
	return a.ofProjects(noun("task", "Run commands to their end, each in a VM of its own", []string{"tasks"},
		a.taskSubmitCommand(), a.taskListCommand(), a.taskStatusCommand(), a.taskLogsCommand(), a.taskArtifactsCommand(), a.taskWaitCommand(),
		a.taskChangeCommand("cancel", "canceled", "End tasks that are not finished", `End a task, or all unfinished tasks of an array. A command that runs is stopped as "vm stop" does it.`),
		a.taskChangeCommand("retry", "runs again", "Let finished tasks run again", "Let a finished task run again, or those of an array that did not succeed: with the number of its next attempt, and all its retries anew."),
		a.taskChangeCommand("remove", "removed", "Forget finished tasks", "Forget a finished task, or all finished tasks of an array. They go by themselves after the time of --keep. Their output stays with their nodes for that time, but can't be asked for any more."),
	))
}

// vmOnlyFlags make no sense for a task.
var vmOnlyFlags = []string{"name", "restart", "restart-backoff", "reschedules", "interactive", "tty", "rm", "publish"}

// registerTask registers the flags of a spec but those that are of VMs alone.
func (s *specFlags) registerTask(cmd *cobra.Command) {
	all := &cobra.Command{}
	s.register(all)
	all.Flags().VisitAll(func(f *pflag.Flag) {
		if !slices.Contains(vmOnlyFlags, f.Name) && !strings.HasPrefix(f.Name, "health-") {
			cmd.Flags().AddFlag(f)
		}
	})
	s.cmd = cmd
}

// taskFlags are those of what a task is, whoever submits it.
type taskFlags struct {
	spec                 specFlags
	limit, backoff, keep durationFlag
	once                 bool
	artifacts            []string
	retries              uint32
}

// register adds the flags.
func (t *taskFlags) register(cmd *cobra.Command) {
	t.spec.registerTask(cmd)
	f := cmd.Flags()
	f.Var(&t.limit, "time-limit", "end an attempt that runs longer (default: none)")
	f.Uint32Var(&t.retries, "retries", 0, "try again so often when the command fails")
	f.Var(&t.backoff, "backoff", "wait before the first retry, doubled by each further one (default: 5s)")
	f.StringArrayVar(&t.artifacts, "artifact", nil, "absolute path of a file or directory in the guest, which is kept when the command ended; may be repeated")
	f.BoolVar(&t.once, "at-most-once", false, "never begin the command a second time")
	f.Var(&t.keep, "keep", "keep the finished task and its output for that time (default: 1d)")
}

// fill makes of the flags what a task is, and gives what else they say in the request of
// a VM.
func (t *taskFlags) fill(to *blixardv1.TaskSpec, image string, command []string) (*blixardv1.CreateVMRequest, error) {
	t.spec.image = image
	vm, err := t.spec.request(command)
	if err != nil {
		return nil, err
	}
	to.Vm, to.Retries, to.Artifacts = vm.GetSpec(), t.retries, t.artifacts
	to.Vm.Restart = nil
	if t.once {
		to.Delivery = blixardv1.Delivery_at_most_once
	}
	for flag, field := range map[*durationFlag]**durationpb.Duration{&t.limit: &to.Timeout, &t.backoff: &to.Backoff, &t.keep: &to.Keep} {
		if *flag > 0 {
			*field = durationpb.New(time.Duration(*flag))
		}
	}
	return vm, nil
}

func (a *app) taskSubmitCommand() *cobra.Command {
	var flags taskFlags
	var wait, quiet bool
	req := &blixardv1.SubmitTaskRequest{Spec: &blixardv1.TaskSpec{}}
	cmd := &cobra.Command{
		Use: "submit IMAGE [flags] [--] [COMMAND [ARG]...]", Short: "Run a command to its end in a VM of its own",
		Long: `Submit a task: a command that runs to its end in a VM of its own, on whichever node has room. It succeeds when its command ends
with 0. Flags may stand before and behind IMAGE, up to "--" or the command.

A task runs at least once: when its node is lost it begins again elsewhere, so its command may run more than once, and for a while
twice at a time. With --at-most-once it is never begun a second time; it fails when nobody can know how it ended.

The command finds BLIXARD_TASK, BLIXARD_TASK_ATTEMPT and, in an array, BLIXARD_TASK_NUMBER in its environment.

` + exitHelp,
		Example: `  blixard task submit --wait busybox -- sh -c 'echo hello'
  blixard task submit --name part --count 100 busybox -- sh -c 'echo $BLIXARD_TASK_NUMBER'
  blixard task submit --name sum --after part busybox -- echo done
  blixard task submit --retries 3 --time-limit 10m --memory 1GiB busybox -- wget -O /dev/null http://example.org`,
		Args: atLeastOne("IMAGE"), ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			image, command, err := commandLine(cmd, args)
			if err != nil || askedForHelp(cmd) {
				return orHelp(cmd, err)
			}
			if image == "" {
				return usageError("IMAGE is missing").WithHint("write `blixard task submit busybox -- true`")
			}
			if cmd.Flags().Changed("count") && req.Count == 0 {
				return usageError("--count is 0").WithHint("leave it out for one task")
			}
			flags.spec.project, req.Spec.After = a.project, a.fullNames(req.Spec.After)
			vm, err := flags.fill(req.Spec, image, command)
			if err != nil {
				return err
			}
			req.Name, req.Project, req.Labels, req.IdempotencyKey = vm.GetName(), vm.GetProject(), vm.GetLabels(), client.NewKey()
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.submitTask(ctx, c, req, wait, quiet)
			})
		},
	}
	flags.register(cmd)
	f := cmd.Flags()
	f.StringVarP(&flags.spec.name, "name", "n", "", "name of the task (default: chosen by the node)")
	f.Uint32Var(&req.Count, "count", 0, "submit an array of so many tasks, named NAME-0, NAME-1 and so on")
	f.StringArrayVar(&req.Spec.After, "after", nil, "begin when that task, or all of that array, succeeded; may be repeated")
	f.BoolVar(&wait, "wait", false, "show the output, and end with the exit code of the command")
	f.BoolVarP(&quiet, "quiet", "q", false, "print the name alone")
	_ = cmd.RegisterFlagCompletionFunc("after", a.completeTasks)
	f.SetInterspersed(false)
	return cmd
}

func (a *app) submitTask(ctx context.Context, c *client.Client, req *blixardv1.SubmitTaskRequest, wait, quiet bool) error {
	resp, err := c.Tasks().SubmitTask(ctx, req)
	if err != nil {
		return err
	}
	task := resp.GetTask()
	name, id := task.GetName(), task.GetId()
	if task.GetArray() != "" {
		name, id = task.GetArrayName(), task.GetArray()
	}
	if wait {
		return a.waitTasks(ctx, c, id, req.Count == 0)
	}
	return a.print(resp, func() error {
		words := "submitted " + name
		switch {
		case quiet:
			words = name
		case req.Count > 0:
			words += fmt.Sprintf(": %d tasks", resp.GetCount())
		}
		_, err := fmt.Fprintln(a.stdout, clean(words))
		return err
	})
}

// completeTasks completes the names of tasks and arrays.
func (a *app) completeTasks(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.ask(func(ctx context.Context, c *client.Client) (names []cobra.Completion) {
		resp, _ := c.Tasks().ListTasks(ctx, &blixardv1.ListTasksRequest{})
		for _, t := range resp.GetTasks() {
			if name, fits := a.completed(t, prefix); fits {
				names = append(names, cobra.CompletionWithDesc(name, t.GetStatus().GetState().String()))
			}
		}
		return names
	})
}

// withTask runs f, and names the nearest task when there is none of that name.
func (a *app) withTask(ctx context.Context, name string, f func(context.Context, *client.Client) error) error {
	return a.withClient(ctx, func(ctx context.Context, c *client.Client) error {
		err := f(ctx, c)
		if err == nil || !problem.HasCode(err, "task.not_found") {
			return err
		}
		resp, listErr := c.Tasks().ListTasks(ctx, &blixardv1.ListTasksRequest{})
		if listErr != nil {
			return err
		}
		var names []string
		for _, t := range resp.GetTasks() {
			names = append(names, t.GetName())
		}
		if near := nearest.Of(name, names); near != "" {
			return problem.From(err).WithHint("did you mean %s?", near)
		}
		return err
	})
}

func (a *app) taskListCommand() *cobra.Command {
	var quiet bool
	var states []string
	cmd := &cobra.Command{
		Use: "list [ARRAY]", Aliases: []string{"ls"}, Short: "List tasks", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completeTasks,
		Example: "  blixard task list\n  blixard task list part --state failed\n  blixard task list -o json | jq -r '.tasks[].name'",
		RunE: func(cmd *cobra.Command, args []string) error {
			array := ""
			if len(args) > 0 {
				array = a.full(args[0])
			}
			return a.withTask(cmd.Context(), array, func(ctx context.Context, c *client.Client) error {
				tasks, err := allTasks(ctx, c, array)
				if err != nil {
					return err
				}
				tasks = slices.DeleteFunc(tasks, func(t *blixardv1.Task) bool {
					return !a.ofProject(t) || len(states) > 0 && !slices.Contains(states, t.GetStatus().GetState().String())
				})
				raw, err := list("tasks", tasks)
				if err != nil {
					return err
				}
				return a.print(raw, func() error { return a.taskTable(tasks, quiet) })
			})
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "names only")
	cmd.Flags().StringSliceVar(&states, "state", nil, "only tasks in that state, such as failed; may be repeated")
	complete(cmd, "state", slices.Sorted(maps.Keys(blixardv1.TaskState_Enum_value))...)
	return cmd
}

func (a *app) taskTable(tasks []*blixardv1.Task, quiet bool) error {
	t := &table{
		header: []string{"NAME", "STATE", "NODE", "TRIES", "EXIT", "AGE", "RAN", "MESSAGE"}, shrink: []int{7, 0},
		color: func(column int, cell string) string {
			if column == 1 {
				return taskColor(cell)
			}
			return ""
		},
	}
	for _, task := range tasks {
		if quiet {
			if _, err := fmt.Fprintln(a.stdout, clean(task.GetName())); err != nil {
				return err
			}
			continue
		}
		st := task.GetStatus()
		message := st.GetMessage()
		if st.GetState() == blixardv1.TaskState_succeeded || st.GetState() == blixardv1.TaskState_running {
			message = ""
		}
		t.add(task.GetName(), st.GetState().String(), st.GetNode(), strconv.Itoa(int(st.GetTries())), exitText(st), since(task.GetCreatedAt()), ranFor(st), message)
	}
	if quiet {
		return nil
	}
	return a.writeTable(t)
}

func taskColor(word string) string {
	switch word {
	case "running", "succeeded":
		return green
	case "failed":
		return red
	case "canceled":
		return faint
	}
	return yellow
}

func exitText(st *blixardv1.TaskStatus) string {
	if st.ExitCode == nil {
		return ""
	}
	return strconv.Itoa(int(st.GetExitCode()))
}

// ranFor is how long the newest attempt ran.
func ranFor(st *blixardv1.TaskStatus) string {
	switch {
	case st.GetStartedAt() == nil:
		return ""
	case st.GetFinishedAt() == nil:
		return since(st.GetStartedAt())
	}
	return units.HumanDuration(st.GetFinishedAt().AsTime().Sub(st.GetStartedAt().AsTime()))
}

func (a *app) taskStatusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status NAME", Aliases: []string{"show", "get"}, Short: "Show a task", Args: exactly("NAME"), ValidArgsFunction: a.completeTasks,
		Example: "  blixard task status sum\n  blixard task status sum -o json | jq .status.exitCode",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withTask(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Tasks().GetTask(ctx, &blixardv1.GetTaskRequest{Name: a.full(args[0])})
				if err != nil {
					return err
				}
				return a.print(resp.GetTask(), func() error { return a.facts(taskFacts(resp.GetTask())) })
			})
		},
	}
}

func taskFacts(t *blixardv1.Task) [][2]string {
	spec, st := t.GetSpec(), t.GetStatus()
	limit := ""
	if spec.GetTimeout() != nil {
		limit = units.HumanDuration(spec.GetTimeout().AsDuration())
	}
	rows := [][2]string{
		{"Name", t.GetName()},
		{"ID", t.GetId()},
		{"Schedule", t.GetSchedule()},
		{"Scheduled at", at(t.GetScheduledAt())},
		{"State", st.GetState().String()},
		{"Message", st.GetMessage()},
		{"Node", st.GetNode()},
		{"Image", spec.GetVm().GetImage()},
		{"Project", t.GetProject()},
		{"Command", strings.Join(spec.GetVm().GetCommand(), " ")},
		{"Delivery", strings.ReplaceAll(spec.GetDelivery().String(), "_", " ")},
		{"Tries", fmt.Sprintf("%d of %d", st.GetTries(), spec.GetRetries()+1)},
		{"Time limit", limit},
		{"After", strings.Join(spec.GetAfter(), ", ")},
		{"Exit code", exitText(st)},
		{"Created", at(t.GetCreatedAt())},
		{"Started", at(st.GetStartedAt())},
		{"Finished", at(st.GetFinishedAt())},
		{"Ran", ranFor(st)},
		{"Kept", units.HumanDuration(spec.GetKeep().AsDuration())},
		{"Labels", labelsText(t.GetLabels())},
	}
	if n := st.GetNextTryAt(); n != nil {
		rows = append(rows, [2]string{"Next try", "in " + units.HumanDuration(time.Until(n.AsTime()))})
	}
	return rows
}

func (a *app) taskChangeCommand(verb, done, short, long string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME...", Short: short, Long: long, Args: atLeastOne("NAME"), ValidArgsFunction: a.completeTasks,
		Example: fmt.Sprintf("  blixard task %s sum\n  blixard task %s part", verb, verb),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, name := range a.fullNames(args) {
				errs = append(errs, a.withTask(cmd.Context(), name, func(ctx context.Context, c *client.Client) error {
					tasks, err := changeTasks(ctx, c, verb, name)
					if err != nil {
						return err
					}
					raw, err := list("tasks", tasks)
					if err != nil {
						return err
					}
					return a.print(raw, func() error {
						for _, t := range tasks {
							if _, err := fmt.Fprintf(a.stdout, "%s %s\n", clean(t.GetName()), done); err != nil {
								return err
							}
						}
						return nil
					})
				}))
			}
			return errors.Join(errs...)
		},
	}
}

func changeTasks(ctx context.Context, c *client.Client, verb, name string) ([]*blixardv1.Task, error) {
	switch key := client.NewKey(); verb {
	case "cancel":
		resp, err := c.Tasks().CancelTask(ctx, &blixardv1.CancelTaskRequest{Name: name, IdempotencyKey: key})
		return resp.GetTasks(), err
	case "retry":
		resp, err := c.Tasks().RetryTask(ctx, &blixardv1.RetryTaskRequest{Name: name, IdempotencyKey: key})
		return resp.GetTasks(), err
	default:
		resp, err := c.Tasks().RemoveTask(ctx, &blixardv1.RemoveTaskRequest{Name: name, IdempotencyKey: key})
		return resp.GetTasks(), err
	}
}

func (a *app) taskLogsCommand() *cobra.Command {
	var follow bool
	var tail uint32
	cmd := &cobra.Command{
		Use: "logs NAME", Short: "Show the output of a task's newest attempt", Args: exactly("NAME"), ValidArgsFunction: a.completeTasks,
		Example: "  blixard task logs sum\n  blixard task logs -f part-7 --tail 20",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withTask(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				req := &blixardv1.TaskLogsRequest{Name: a.full(args[0]), Follow: follow}
				if cmd.Flags().Changed("tail") {
					req.TailLines = &tail
				}
				if follow {
					if _, err := awaitTasks(ctx, c, a.full(args[0]), func(all map[string]*blixardv1.Task) bool { return anyBegan(all) }); err != nil {
						return err
					}
				}
				return a.taskLogs(ctx, c, req)
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "wait for the attempt to begin, and go on until it ends")
	cmd.Flags().Uint32Var(&tail, "tail", 0, "only so many of the newest lines")
	return cmd
}

func taskFinished(t *blixardv1.Task) bool { return t.GetStatus().GetFinishedAt() != nil }

// anyBegan reports whether there is output, or will be none.
func anyBegan(all map[string]*blixardv1.Task) bool {
	for _, t := range all {
		if t.GetStatus().GetStartedAt() != nil || taskFinished(t) {
			return true
		}
	}
	return false
}

func (a *app) taskLogs(ctx context.Context, c *client.Client, req *blixardv1.TaskLogsRequest) error {
	stream, err := c.Tasks().TaskLogs(ctx, req)
	if err != nil {
		return err
	}
	return a.copyLog(func() ([]byte, error) {
		m, err := stream.Recv()
		return m.GetData(), err
	}, false, "the task goes on; repeat the command when the node is back")
}

func (a *app) taskWaitCommand() *cobra.Command {
	return &cobra.Command{
		Use: "wait NAME", Short: "Wait until a task, or all of an array, is finished", Args: exactly("NAME"), ValidArgsFunction: a.completeTasks,
		Long: `Wait until a task, or all tasks of an array, is finished, and end with the exit code of the task's command; of an array with 0
when all succeeded, else with 1. It waits for as long as it takes, or for --timeout.`,
		Example: "  blixard task wait sum && echo it succeeded\n  blixard task wait part --timeout 1h",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withTask(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				return a.waitTasks(ctx, c, a.full(args[0]), false)
			})
		},
	}
}

// awaitTasks watches the tasks of a name until done says so, and gives them by their ids.
func awaitTasks(ctx context.Context, c *client.Client, name string, done func(map[string]*blixardv1.Task) bool) (map[string]*blixardv1.Task, error) {
	all := map[string]*blixardv1.Task{}
	synced := false
	for m, err := range c.WatchTasks(ctx, name) {
		switch {
		case err != nil:
			return all, err
		case m.GetSynced():
			synced = true
		case m.GetDeleted():
			delete(all, m.GetTask().GetId())
		default:
			all[m.GetTask().GetId()] = m.GetTask()
		}
		if synced && done(all) {
			return all, nil
		}
	}
	return all, problem.From(context.Cause(ctx))
}

// waitTasks waits for the end of a task or an array, showing the output of a single one
// when asked to.
func (a *app) waitTasks(ctx context.Context, c *client.Client, name string, show bool) error {
	if a.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = a.waiting(ctx)
		defer cancel()
	}
	p := a.progress("the task begins")
	defer p.stop()
	for attempt := uint32(0); show; {
		all, err := awaitTasks(ctx, c, name, func(all map[string]*blixardv1.Task) bool {
			for _, t := range all {
				st := t.GetStatus()
				if !taskFinished(t) {
					p.set("task %s is %s: %s", t.GetName(), st.GetState(), st.GetMessage())
				}
				if !taskFinished(t) && (st.GetStartedAt() == nil || st.GetAttempt() == attempt) {
					return false
				}
			}
			return true
		})
		if err != nil {
			return err
		}
		// An attempt that began and ended meanwhile has its output shown, too.
		for _, t := range all {
			st := t.GetStatus()
			show = !taskFinished(t)
			if st.GetAttempt() == attempt || st.GetStartedAt() == nil {
				continue
			}
			attempt = st.GetAttempt()
			if err := a.taskLogs(ctx, c, &blixardv1.TaskLogsRequest{Name: t.GetId(), Follow: true}); err != nil {
				return err
			}
		}
	}
	all, err := awaitTasks(ctx, c, name, func(all map[string]*blixardv1.Task) bool {
		open := 0
		for _, t := range all {
			if !taskFinished(t) {
				open++
			}
		}
		if len(all) > 1 {
			p.set("%d of %d tasks are finished", len(all)-open, len(all))
		}
		return open == 0
	})
	if err != nil {
		return err
	}
	return a.tasksEnd(all)
}

// tasksEnd makes the end of this program of the ends of tasks.
func (a *app) tasksEnd(all map[string]*blixardv1.Task) error {
	var bad []*blixardv1.Task
	for _, id := range slices.Sorted(maps.Keys(all)) {
		if all[id].GetStatus().GetState() != blixardv1.TaskState_succeeded {
			bad = append(bad, all[id])
		}
	}
	switch {
	case len(bad) == 0:
		return nil
	case len(all) > 1:
		return &exitError{code: exitFailure, err: problem.New(problem.Conflict, "task.failed", "%d of %d tasks did not succeed, %s first", len(bad), len(all), bad[0].GetName()).
			WithHint("see `blixard task list %s --state failed`", bad[0].GetArrayName())}
	}
	st := bad[0].GetStatus()
	end := &exitError{code: exitFailure, err: problem.New(problem.Conflict, "task.failed", "task %q %s: %s", bad[0].GetName(), st.GetState(), st.GetMessage()).
		WithHint("see `blixard task logs %s`", bad[0].GetName())}
	if code := st.GetExitCode(); code > 0 && code < 256 {
		end.code = int(code)
	}
	return end
}
