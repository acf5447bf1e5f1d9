package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/units"
)

func msToDuration(ms uint32) time.Duration { return time.Duration(ms) * time.Millisecond }

func (a *app) vmListCommand() *cobra.Command {
	var quiet, stale bool
	var labels, states []string
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List VMs", Args: exactly(),
		Example: `  blixard vm list
  blixard vm list --state running --label tier=web
  blixard vm list --project shop
  blixard vm list -o json | jq -r '.vms[].name'
  blixard vm delete $(blixard vm list -q)`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			wanted, err := parseLabels(labels)
			if err != nil {
				return err
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				vms, err := a.listVMs(ctx, c, stale)
				if err != nil {
					return err
				}
				vms = slices.DeleteFunc(vms, func(vm *blixardv1.VM) bool {
					return !hasLabels(vm, wanted) || !a.ofProject(vm) || len(states) > 0 && !slices.Contains(states, stateWord(vm))
				})
				raw, err := list("vms", vms)
				if err != nil {
					return err
				}
				return a.print(raw, func() error { return a.vmTable(vms, quiet) })
			})
		},
	}
	staleFlag(cmd, &stale)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "names only")
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "only VMs with the label KEY=VALUE; may be repeated")
	cmd.Flags().StringSliceVar(&states, "state", nil, "only VMs in that state, such as running; may be repeated")
	complete(cmd, "state", slices.Sorted(maps.Keys(blixardv1.AllocationState_Enum_value))...)
	return cmd
}

// staleFlag is for commands that read.
func staleFlag(cmd *cobra.Command, stale *bool) {
	cmd.Flags().BoolVar(stale, "stale", false, "show what the node knows by itself, also without a leader, and say how old that may be")
}

func (a *app) listVMs(ctx context.Context, c *client.Client, stale bool) ([]*blixardv1.VM, error) {
	if !stale {
		return c.AllVMs(ctx)
	}
	vms, first, err := c.StaleVMs(ctx)
	if err != nil {
		return nil, err
	}
	return vms, a.sayStale(first.GetIndex(), first.GetAge())
}

// sayStale tells on standard error how old a stale read may be.
func (a *app) sayStale(index uint64, age *durationpb.Duration) error {
	text := "of unknown age"
	if age != nil {
		text = "at most " + units.HumanDuration(age.AsDuration()) + " old"
	}
	_, err := fmt.Fprintf(a.stderr, "stale: index %d, %s\n", index, text)
	return err
}

func hasLabels(of interface{ GetLabels() map[string]string }, wanted map[string]string) bool {
	for k, v := range wanted {
		if got, ok := of.GetLabels()[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func (a *app) vmTable(vms []*blixardv1.VM, quiet bool) error {
	if quiet {
		for _, vm := range vms {
			if _, err := fmt.Fprintln(a.stdout, clean(vm.GetName())); err != nil {
				return err
			}
		}
		return nil
	}
	t := &table{
		header: []string{"NAME", "STATE", "NODE", "IMAGE", "CPUS", "MEMORY", "UP", "RESTARTS", "MESSAGE"},
		shrink: []int{8, 3, 0},
		color: func(column int, cell string) string {
			if column == 1 {
				return stateColor(cell)
			}
			return ""
		},
	}
	for _, vm := range vms {
		s := vm.GetStatus()
		up, message := "", reason(vm)
		if s.GetState() == blixardv1.AllocationState_running {
			up, message = since(s.GetStartedAt()), ""
		}
		t.add(vm.GetName(), stateWord(vm), s.GetNode(), vm.GetSpec().GetImage(), strconv.Itoa(int(vm.GetSpec().GetVcpus())),
			(units.Size(vm.GetSpec().GetMemoryMib()) * units.MiB).Human(), up, strconv.Itoa(int(s.GetRestarts())), message)
	}
	return a.writeTable(t)
}

func since(at *timestamppb.Timestamp) string {
	if at == nil {
		return ""
	}
	return units.HumanDuration(time.Since(at.AsTime()))
}

func at(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return fmt.Sprintf("%s (%s ago)", t.AsTime().Local().Format(time.DateTime), since(t))
}

func (a *app) vmStatusCommand() *cobra.Command {
	stale := false
	cmd := &cobra.Command{
		Use: "status NAME", Aliases: []string{"show", "get"}, Short: "Show a VM", Args: exactly("NAME"),
		ValidArgsFunction: a.completeVMs(1),
		Example:           "  blixard vm status web\n  blixard vm status web -o json | jq .status.state",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withVM(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				resp, err := c.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: a.full(args[0]), Stale: stale})
				if err != nil {
					return err
				}
				if stale {
					if err := a.sayStale(resp.GetIndex(), resp.GetAge()); err != nil {
						return err
					}
				}
				return a.print(resp.GetVm(), func() error { return a.vmFacts(resp.GetVm()) })
			})
		},
	}
	staleFlag(cmd, &stale)
	return cmd
}

func (a *app) vmFacts(vm *blixardv1.VM) error {
	spec, s := vm.GetSpec(), vm.GetStatus()
	rows := [][2]string{
		{"Name", vm.GetName()},
		{"ID", vm.GetId()},
		{"Project", projectOf(vm)},
		{"State", stateWord(vm)},
		{"Message", reason(vm)},
		{"Node", s.GetNode()},
		{"Image", spec.GetImage()},
		{"Command", strings.Join(spec.GetCommand(), " ")},
		{"CPUs", strconv.Itoa(int(spec.GetVcpus()))},
		{"Memory", (units.Size(spec.GetMemoryMib()) * units.MiB).String()},
		{"Disk", units.Size(spec.GetDiskBytes()).String()},
		{"Restart", restartWords(spec.GetRestart(), s.GetRestarts())},
		{"On node loss", spec.GetOnNodeLoss().String()},
		{"Accelerator", s.GetAccelerator()},
		{"Kernel", strings.TrimSpace(s.GetKernel() + " " + s.GetKernelRelease())},
		{"Boot ID", s.GetBootId()},
		{"Created", at(vm.GetCreatedAt())},
		{"Started", at(s.GetStartedAt())},
	}
	if s.GetReadyMs() > 0 {
		rows = append(rows, [2]string{"Ready after", units.HumanDuration(msToDuration(s.GetReadyMs()))})
	}
	rows = append(rows, [2]string{"Finished", at(s.GetFinishedAt())})
	if s.ExitCode != nil {
		rows = append(rows, [2]string{"Exit code", strconv.Itoa(int(s.GetExitCode()))})
	}
	rows = append(rows, [2]string{"Stopped by", s.GetStopRung()})
	if n := s.GetNextStartAt(); n != nil {
		rows = append(rows, [2]string{"Next start", "in " + units.HumanDuration(time.Until(n.AsTime()))})
	}
	rows = append(rows, [2]string{"Labels", labelsText(vm.GetLabels())})
	rows = append(rows, schedulingFacts(spec.GetScheduling())...)
	rows = append(rows, attachedFacts(vm)...)
	return a.facts(rows)
}

// attachedFacts tell of networks, ports, volumes and checks.
func attachedFacts(vm *blixardv1.VM) [][2]string {
	var rows [][2]string
	for _, i := range vm.GetInterfaces() {
		rows = append(rows, [2]string{"Network", strings.Join(strings.Fields(i.GetNetwork()+" "+i.GetIpv4()+" "+i.GetIpv6()), ", ")})
	}
	for _, p := range vm.GetSpec().GetPorts() {
		rows = append(rows, [2]string{"Port", fmt.Sprintf("%d -> %d/%s", p.GetHostPort(), p.GetGuestPort(), p.GetProtocol())})
	}
	for _, v := range vm.GetSpec().GetVolumes() {
		text := v.GetVolume() + " at " + v.GetPath()
		if v.GetReadOnly() {
			text += ", read only"
		}
		rows = append(rows, [2]string{"Volume", text})
	}
	s := vm.GetStatus()
	if s.GetHealth() != blixardv1.Health_unspecified {
		rows = append(rows, [2]string{"Health", strings.TrimSuffix(s.GetHealth().String()+": "+s.GetHealthMessage(), ": ")})
	}
	return append(rows, [2]string{"Needs restart", strings.Join(s.GetRestartNeeded(), ", ")})
}

func restartWords(p *blixardv1.RestartPolicy, restarts uint32) string {
	word := strings.ReplaceAll(p.GetMode().String(), "_", "-")
	if restarts == 0 {
		return word
	}
	return fmt.Sprintf("%s, %d so far", word, restarts)
}

func (a *app) vmWatchCommand() *cobra.Command {
	return &cobra.Command{
		Use: "watch [NAME]", Short: "Show each change of one VM or of all", Args: atMostOne("NAME"),
		ValidArgsFunction: a.completeVMs(1),
		Long:              "Show how VMs are and then each change, until interrupted. With -o json each change is one line {\"vm\":..., \"deleted\":..., \"index\":...}.",
		Example:           "  blixard vm watch\n  blixard vm watch web -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := a.full(strings.Join(args, ""))
			return a.withVM(cmd.Context(), name, func(ctx context.Context, c *client.Client) error {
				for m, err := range c.WatchVMs(ctx, name) {
					if err != nil {
						return err
					}
					if m.GetVm() != nil && name == "" && !a.ofProject(m.GetVm()) {
						continue
					}
					if m.GetSynced() && a.output != "json" && a.output != "yaml" {
						continue
					}
					if err := a.printLine(m, func() error { return a.watchLine(m) }); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func (a *app) watchLine(m *blixardv1.WatchVMsResponse) error {
	vm := m.GetVm()
	word := stateWord(vm)
	if m.GetDeleted() {
		word = "deleted"
	}
	_, err := fmt.Fprintf(a.stdout, "%s  %s  %s  %s  %s\n", time.Now().Format(time.TimeOnly), clean(vm.GetName()),
		a.outColor(stateColor(word), word), clean(vm.GetStatus().GetNode()), clean(reason(vm)))
	return err
}

// atMostOne wants one argument or none.
func atMostOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) <= 1 {
			return nil
		}
		return exactly(what)(cmd, args)
	}
}

func (a *app) vmStatsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "stats NAME", Short: "Show a guest's memory and load", Args: exactly("NAME"),
		ValidArgsFunction: a.completeVMs(1),
		Long:              "Show the memory, load and processes of a running guest, as the guest itself says.",
		Example:           "  blixard vm stats web",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withVM(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				s, err := c.VMs().Stats(ctx, &blixardv1.StatsRequest{Name: a.full(args[0])})
				if err != nil {
					return err
				}
				return a.print(s, func() error {
					return a.facts([][2]string{
						{"Memory", fmt.Sprintf("%s of %s free", units.Size(s.GetMemoryAvailableBytes()).Human(), units.Size(s.GetMemoryTotalBytes()).Human())},
						{"Load", fmt.Sprintf("%.2f %.2f %.2f", s.GetLoad1(), s.GetLoad5(), s.GetLoad15())},
						{"Processes", strconv.Itoa(int(s.GetProcesses()))},
						{"Up", units.HumanDuration(s.GetUptime().AsDuration())},
					})
				})
			})
		},
	}
}
