package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/constraint"
)

// waitingShown tasks that find no node are listed below the nodes.
const waitingShown = 20

func (a *app) workerCommand() *cobra.Command {
	return noun("worker", "See which nodes take tasks", []string{"workers"}, a.workerListCommand())
}

// worker is a node and what it has of tasks.
type worker struct {
	node *blixardv1.Node
	// running tasks have their place there, whether or not their command began yet.
	running int
}

func (a *app) workerListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List what nodes take and have of tasks", Args: exactly(),
		Long: fmt.Sprintf(`List for each node whether it takes tasks, how many it has and at most takes, and below them tasks that find no node, with the
reason: the first %d of them. A node says what it takes with tasks.accept and tasks.max of its configuration; cordon, drain and taints count
for tasks as for all VMs.`, waitingShown),
		Example: "  blixard worker list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				nodes, err := c.Nodes().ListNodes(ctx, &blixardv1.ListNodesRequest{})
				if err != nil {
					return err
				}
				tasks, err := allTasks(ctx, c, "")
				if err != nil {
					return err
				}
				raw, err := list("nodes", nodes.GetNodes())
				if err != nil {
					return err
				}
				return a.print(raw, func() error { return a.workerTable(nodes.GetNodes(), tasks) })
			})
		},
	}
}

// allTasks gives all tasks, or those of an array, page by page.
func allTasks(ctx context.Context, c *client.Client, array string) ([]*blixardv1.Task, error) {
	var tasks []*blixardv1.Task
	for req := (&blixardv1.ListTasksRequest{Array: array}); ; {
		resp, err := c.Tasks().ListTasks(ctx, req)
		if err != nil {
			return nil, err
		}
		tasks = append(tasks, resp.GetTasks()...)
		if req.PageToken = resp.GetNextPageToken(); req.PageToken == "" {
			return tasks, nil
		}
	}
}

func (a *app) workerTable(nodes []*blixardv1.Node, tasks []*blixardv1.Task) error {
	workers := map[string]*worker{}
	for _, n := range nodes {
		workers[n.GetId()] = &worker{node: n}
	}
	var waiting []*blixardv1.Task
	for _, t := range tasks {
		st := t.GetStatus()
		switch w := workers[st.GetNodeId()]; {
		case taskFinished(t) || st.GetVmId() == "":
		case w != nil:
			w.running++
		default:
			waiting = append(waiting, t)
		}
	}
	t := &table{header: []string{"NODE", "STATE", "TASKS", "RUNNING", "AT MOST", "DRIVER", "LABELS"}, shrink: []int{6, 0}}
	for _, n := range nodes {
		f := n.GetFingerprint()
		takes, most := "yes", "as many as fit"
		if f.GetTasksMax() > 0 {
			most = strconv.FormatUint(uint64(f.GetTasksMax()), 10)
		}
		if f.GetRefusesTasks() {
			takes, most = "no", "0"
		}
		labels := labelsText(constraint.Labels(n))
		if len(n.GetTaints()) > 0 {
			labels = strings.TrimSpace(labels + " taints: " + taintsText(n.GetTaints()))
		}
		t.add(n.GetName(), nodeStateWords(n), takes, strconv.Itoa(workers[n.GetId()].running), most, strings.TrimSpace(f.GetDriver()+" "+f.GetDriverVersion()), labels)
	}
	if err := a.writeTable(t); err != nil || len(waiting) == 0 {
		return err
	}
	if _, err := fmt.Fprintf(a.stdout, "\n%d tasks have no node:\n", len(waiting)); err != nil {
		return err
	}
	t = &table{header: []string{"TASK", "WHY", "MESSAGE"}, shrink: []int{2, 0}}
	for _, task := range waiting[:min(len(waiting), waitingShown)] {
		t.add(task.GetName(), task.GetStatus().GetReason(), task.GetStatus().GetMessage())
	}
	return a.writeTable(t)
}
