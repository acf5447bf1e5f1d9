package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/constraint"
	"github.com/blixard/blixard/internal/manifest"
)

// The highest priority, and that of VMs which name none.
const (
	priorityMax     = 100
	priorityDefault = 50
)

// schedulingFlags are the flags that say where a VM may and should run.
type schedulingFlags struct {
	constraints, prefer, near, apart []string
	spread                           []string
	strategy, pool                   string
	tolerate                         []string
	priority                         uint32
	changed                          func(flag string) bool
}

func (s *schedulingFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&s.constraints, "constraint", nil, "only on nodes with such a label or fact: zone=a, 'disk in ssd,nvme', 'node.version>=0.2', gpu, '!gpu'; may be repeated")
	f.StringArrayVar(&s.prefer, "prefer", nil, "rather on nodes with such a label or fact: disk=ssd, or 'disk=ssd weight 80' (-100 to 100, default: 50); may be repeated")
	f.StringArrayVar(&s.near, "near", nil, "only where a VM with that label is: app=db, 'app=db over rack' for the same rack, 'app=db weight 50' for rather; may be repeated")
	f.StringArrayVar(&s.apart, "apart", nil, "only where no VM with that label is, as --near; may be repeated")
	f.StringArrayVar(&s.spread, "spread", nil, "spread VMs with that label by shares in percent, the rest evenly: 'app=web over zone a=50,b=30', or 'app=web over zone a=50 weight 50' for rather; may be repeated")
	f.StringVar(&s.strategy, "strategy", "", "among the nodes that are left: spread or pack (default: the cluster's)")
	f.StringVar(&s.pool, "pool", "", "only on nodes of that pool, as --constraint pool=NAME")
	f.StringArrayVar(&s.tolerate, "tolerate", nil, "also on nodes with a taint of that key, or key and value: gpu, gpu=yes, or gpu:evict for that effect alone; may be repeated")
	f.Uint32Var(&s.priority, "priority", priorityDefault, "priority from 0 to 100: VMs of higher priority are placed first, and may take the room of others where scheduler.preemption is on")
	s.changed = f.Changed
	complete(cmd, "strategy", "spread", "pack")
}

func (s *schedulingFlags) apply(spec *blixardv1.VMSpec, given func(string) bool) error {
	next := &blixardv1.Scheduling{
		Constraints: spec.GetScheduling().GetConstraints(), Preferences: spec.GetScheduling().GetPreferences(),
		Affinities: spec.GetScheduling().GetAffinities(), Strategy: spec.GetScheduling().GetStrategy(),
		Tolerations: spec.GetScheduling().GetTolerations(), Spreads: spec.GetScheduling().GetSpreads(),
	}
	if spec.GetScheduling() != nil {
		next.Priority = spec.GetScheduling().Priority
	}
	if given("constraint") {
		next.Constraints = nil
		for _, text := range s.constraints {
			c, err := constraint.Parse(text)
			if err != nil {
				return err
			}
			next.Constraints = append(next.Constraints, c)
		}
	}
	if err := s.applyPool(next); err != nil {
		return err
	}
	if given("prefer") {
		next.Preferences = nil
		for _, text := range s.prefer {
			p, err := parsePreference(text)
			if err != nil {
				return err
			}
			next.Preferences = append(next.Preferences, p)
		}
	}
	if err := s.applyAffinities(next, given); err != nil {
		return err
	}
	if given("spread") {
		next.Spreads = nil
		for _, text := range s.spread {
			one, err := parseSpread(text)
			if err != nil {
				return err
			}
			next.Spreads = append(next.Spreads, one)
		}
	}
	if given("strategy") && s.strategy != "" {
		n, known := blixardv1.Strategy_Enum_value[s.strategy]
		if !known || n == 0 {
			return badWord("--strategy", s.strategy, "spread", "pack")
		}
		next.Strategy = blixardv1.Strategy_Enum(n)
	}
	if err := s.applyPriority(next, given); err != nil {
		return err
	}
	if proto.Size(next) == 0 {
		next = nil
	}
	spec.Scheduling = next
	return nil
}

// applyPool puts a pool in the place of the one that the constraints name.
func (s *schedulingFlags) applyPool(next *blixardv1.Scheduling) error {
	if !s.changed("pool") {
		return nil
	}
	if !s.changed("constraint") {
		next.Constraints = slices.DeleteFunc(slices.Clone(next.Constraints), func(c *blixardv1.Constraint) bool {
			return c.GetKey() == constraint.PoolLabel && c.GetOperator() == blixardv1.Operator_equal
		})
	}
	if s.pool == "" || s.pool == "none" {
		return nil
	}
	if !constraint.IsLabel(constraint.PoolLabel, s.pool) {
		return usageError("--pool %q is no name of a pool", s.pool).WithHint("write --pool gpu; `blixard node list` shows the labels of nodes, of which pool is one")
	}
	next.Constraints = append(next.Constraints, &blixardv1.Constraint{Key: constraint.PoolLabel, Operator: blixardv1.Operator_equal, Values: []string{s.pool}})
	return nil
}

func (s *schedulingFlags) applyPriority(next *blixardv1.Scheduling, given func(string) bool) error {
	if given("tolerate") {
		next.Tolerations = nil
		for _, text := range s.tolerate {
			t, err := constraint.ParseToleration(text)
			if err != nil {
				return err
			}
			next.Tolerations = append(next.Tolerations, t)
		}
	}
	if !s.changed("priority") {
		return nil
	}
	if s.priority > priorityMax {
		return usageError("--priority is %d", s.priority).WithHint("a priority is from 0 to %d; without one it is %d", priorityMax, priorityDefault)
	}
	next.Priority = &s.priority
	return nil
}

// applyAffinities replaces those of a flag that was given, and leaves the others.
func (s *schedulingFlags) applyAffinities(next *blixardv1.Scheduling, given func(string) bool) error {
	var kept []*blixardv1.Affinity
	for _, one := range []struct {
		flag  string
		texts []string
		apart bool
	}{{"near", s.near, false}, {"apart", s.apart, true}} {
		if !given(one.flag) {
			for _, a := range next.GetAffinities() {
				if a.GetApart() == one.apart {
					kept = append(kept, a)
				}
			}
			continue
		}
		for _, text := range one.texts {
			a, err := parseAffinity("--"+one.flag, text)
			if err != nil {
				return err
			}
			a.Apart = one.apart
			kept = append(kept, a)
		}
	}
	next.Affinities = kept
	return nil
}

// parsePreference reads CONSTRAINT [weight NUMBER].
func parsePreference(text string) (*blixardv1.Preference, error) {
	p := &blixardv1.Preference{}
	if before, number, weighted := strings.Cut(text, " weight "); weighted {
		n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 32)
		if err != nil || n == 0 || n < -100 || n > 100 {
			return nil, usageError("--prefer %q: the weight must be a number from -100 to 100, and not 0", text).WithHint("write --prefer 'disk=ssd weight 80'")
		}
		text, p.Weight = before, int32(n)
	}
	c, err := constraint.Parse(text)
	p.Constraint = c
	return p, err
}

// parseAffinity reads KEY=VALUE [over KEY] [weight NUMBER].
func parseAffinity(flag, text string) (*blixardv1.Affinity, error) {
	bad := usageError("%s %q is not KEY=VALUE [over KEY] [weight NUMBER]", flag, text).WithHint("write %s app=web, or %s 'app=web over rack weight 50'", flag, flag)
	words := strings.Fields(text)
	if len(words) == 0 || len(words)%2 == 0 {
		return nil, bad
	}
	key, value, given := strings.Cut(words[0], "=")
	if key == "" || !given {
		return nil, bad
	}
	a := &blixardv1.Affinity{Key: key, Value: value}
	for i := 1; i < len(words); i += 2 {
		switch words[i] {
		case "over":
			a.Over = words[i+1]
		case "weight":
			n, err := strconv.ParseUint(words[i+1], 10, 32)
			if err != nil || n == 0 || n > 100 {
				return nil, usageError("%s %q: the weight must be a number from 1 to 100", flag, text).WithHint("leave it out when it must be so")
			}
			a.Weight = uint32(n)
		default:
			return nil, bad
		}
	}
	return a, nil
}

// schedulingFacts tell of rules in the words of the flags.
func schedulingFacts(s *blixardv1.Scheduling) [][2]string {
	var constraints, prefer, near, apart []string
	for _, c := range s.GetConstraints() {
		constraints = append(constraints, constraint.Text(c))
	}
	for _, p := range s.GetPreferences() {
		text := constraint.Text(p.GetConstraint())
		if p.GetWeight() != 0 {
			text += fmt.Sprintf(" weight %d", p.GetWeight())
		}
		prefer = append(prefer, text)
	}
	for _, one := range s.GetAffinities() {
		text := one.GetKey() + "=" + one.GetValue()
		if one.GetOver() != "" {
			text += " over " + one.GetOver()
		}
		if one.GetWeight() != 0 {
			text += fmt.Sprintf(" weight %d", one.GetWeight())
		}
		if one.GetApart() {
			apart = append(apart, text)
		} else {
			near = append(near, text)
		}
	}
	rows := [][2]string{
		{"Constraints", strings.Join(constraints, "; ")},
		{"Prefers", strings.Join(prefer, "; ")},
		{"Near", strings.Join(near, "; ")},
		{"Apart", strings.Join(apart, "; ")},
		{"Spread", spreadsText(s.GetSpreads())},
	}
	if s != nil && s.Priority != nil {
		rows = append(rows, [2]string{"Priority", strconv.FormatUint(uint64(s.GetPriority()), 10)})
	}
	var tolerates []string
	for _, t := range s.GetTolerations() {
		tolerates = append(tolerates, constraint.TolerationText(t))
	}
	rows = append(rows, [2]string{"Tolerates", strings.Join(tolerates, "; ")})
	if s.GetStrategy() != blixardv1.Strategy_unspecified {
		rows = append(rows, [2]string{"Strategy", s.GetStrategy().String()})
	}
	return rows
}

func (a *app) vmExplainCommand() *cobra.Command {
	return &cobra.Command{
		Use: "explain NAME", Short: "Show for each node why a VM would be placed there, or why not", Args: exactly("NAME"), ValidArgsFunction: a.completeVMs(1),
		Long: `Show for each node whether a VM can be placed there, and how many points the node has, or why not. A VM that waits is placed
as soon as one is possible. For a VM that has its place it is shown where another one like it would go.

"vm create --dry-run" shows the same of a VM that is not there yet.`,
		Example: "  blixard vm explain web\n  blixard vm explain web -o json | jq '.nodes[] | select(.possible | not)'",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withVM(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				return a.explain(ctx, c, &blixardv1.ExplainVMRequest{Name: a.full(args[0])})
			})
		},
	}
}

func (a *app) explain(ctx context.Context, c *client.Client, req *blixardv1.ExplainVMRequest) error {
	resp, err := c.VMs().ExplainVM(ctx, req)
	if err != nil {
		return err
	}
	return a.print(resp, func() error {
		if _, err := fmt.Fprintln(a.stdout, clean(explainLine(resp))); err != nil {
			return err
		}
		t := &table{header: []string{"NODE", "POINTS", "WHY"}, shrink: []int{2}}
		for _, v := range resp.GetNodes() {
			if !v.GetPossible() {
				t.add(v.GetNode(), "-", v.GetMessage())
				continue
			}
			t.add(v.GetNode(), points(v.GetPoints()), partsText(v.GetParts()))
		}
		return a.writeTable(t)
	})
}

// explainLine says what comes of it.
func explainLine(resp *blixardv1.ExplainVMResponse) string {
	vm := resp.GetVm()
	name := vm.GetName()
	if name == "" {
		name = "the VM"
	}
	at := vm.GetStatus().GetNode()
	switch {
	case at != "" && resp.GetNode() != "":
		return fmt.Sprintf("%s is on %s; another one like it would go to %s", name, at, resp.GetNode())
	case at != "":
		return fmt.Sprintf("%s is on %s; another one like it would wait%s", name, at, preemptsText(resp.GetPreempts()))
	case resp.GetNode() != "":
		return fmt.Sprintf("%s would go to %s", name, resp.GetNode())
	}
	return fmt.Sprintf("%s would wait: no node is possible (%s)%s", name, resp.GetReason(), preemptsText(resp.GetPreempts()))
}

// preemptsText goes on a sentence that says that a VM would wait.
func preemptsText(p *blixardv1.Preemption) string {
	if p == nil {
		return ""
	}
	names := victims(p)
	if len(names) == 0 {
		return ", until " + p.GetNode() + " has removed what is going"
	}
	return ", until " + p.GetNode() + " is without " + strings.Join(names, ", ") + ", to make room"
}

// victims are the names of VMs that make room, with their priorities.
func victims(p *blixardv1.Preemption) []string {
	var names []string
	for _, vm := range p.GetVms() {
		names = append(names, fmt.Sprintf("%s (priority %d)", vm.GetName(), vm.GetPriority()))
	}
	return names
}

func points(n float64) string { return strconv.FormatFloat(n, 'f', 1, 64) }

func partsText(parts []*blixardv1.NodePoints) string {
	var words []string
	for _, p := range parts {
		words = append(words, fmt.Sprintf("%+.1f %s", p.GetPoints(), p.GetWhat()))
	}
	return strings.Join(words, "; ")
}

func (a *app) schedulerCommand() *cobra.Command {
	return noun("scheduler", "Ask where VMs would go", nil, a.simulateCommand())
}

func (a *app) simulateCommand() *cobra.Command {
	var files, without []string
	cmd := &cobra.Command{
		Use: "simulate [-f FILE|DIR|-] [--without NODE]", Short: "Show where VMs of files would go, or those of nodes that were lost", Args: exactly(),
		Long: `Show where the VMs that files declare would go, one after the other, on the cluster as it is: each takes its room from the next. With
--without, as if those nodes were not there: their VMs are placed anew first. Nothing is changed. Volumes and networks of the files must be there.`,
		Example: `  blixard scheduler simulate -f site/
  blixard scheduler simulate --without n1
  blixard scheduler simulate --without n1 --without n2 -f site.yaml -o json | jq '.vms[] | select(.to == "")'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &blixardv1.SimulateRequest{WithoutNodes: without}
			var vms []*manifest.Object
			if len(files) > 0 {
				objects, err := a.readManifests(files)
				if err != nil {
					return err
				}
				for _, o := range objects {
					if o.VM != nil {
						vms, req.Vms = append(vms, o), append(req.Vms, o.VM)
					}
				}
			}
			if len(req.GetVms())+len(without) == 0 {
				return usageError("there is nothing to simulate").WithHint("write -f FILE with VMs, or --without NODE")
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Nodes().Simulate(ctx, req)
				if err != nil {
					return aboutVMs(vms, err)
				}
				return a.print(resp, func() error { return a.plannedTable(resp.GetVms()) })
			})
		},
	}
	filesFlag(cmd, &files)
	cmd.Flags().StringArrayVar(&without, "without", nil, "node that is left out; may be repeated")
	_ = cmd.RegisterFlagCompletionFunc("without", func(cmd *cobra.Command, _ []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return a.completeNodes(cmd, nil, prefix)
	})
	return cmd
}
