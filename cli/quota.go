package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/objectname"
	"github.com/blixard/blixard/internal/units"
)

const (
	// defaultProject is that of VMs that name none.
	defaultProject = objectname.DefaultProject
	// noLimit is the word that takes a limit off.
	noLimit = "unlimited"
)

// projectOf names the project of a VM.
func projectOf(of interface{ GetProject() string }) string {
	if of.GetProject() == "" {
		return defaultProject
	}
	return of.GetProject()
}

func (a *app) completeProjects(_ *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.ask(func(ctx context.Context, c *client.Client) (names []cobra.Completion) {
		usages, _ := projectUsages(ctx, c)
		for _, u := range usages {
			if len(args) == 0 && strings.HasPrefix(u.GetProject(), prefix) {
				names = append(names, u.GetProject())
			}
		}
		return names
	})
}

func (a *app) quotaCommand() *cobra.Command {
	return noun("quota", "Bound what the VMs of a project may have", []string{"quotas"},
		a.quotaSetCommand(), a.quotaGetCommand(), a.quotaListCommand(), a.quotaUsageCommand(), a.quotaRemoveCommand())
}

// limitFlag reads a limit: a number, or a size that is kept in parts of unit bytes.
type limitFlag struct {
	to   **uint64
	unit units.Size // 0 for numbers
}

func (l *limitFlag) String() string { return "" }

func (l *limitFlag) Type() string {
	if l.unit > 0 {
		return "size"
	}
	return "number"
}

func (l *limitFlag) Set(text string) error {
	var n uint64
	switch {
	case text == noLimit:
		*l.to = &n
		return nil
	case l.unit > 0:
		size, err := units.ParseSize(text)
		if err != nil {
			return err
		}
		n = uint64(size / l.unit)
		if size%l.unit > 0 {
			return usageError("%s is no whole number of %s", text, l.unit).WithHint("write a multiple of %s, or %s", l.unit, noLimit)
		}
	default:
		var err error
		if n, err = strconv.ParseUint(text, 10, 64); err != nil {
			return usageError("%q is no number", text).WithHint("write a number of 1 and more, or %s", noLimit)
		}
	}
	if n == 0 {
		return usageError("a limit can't be 0").WithHint("write %s to take the limit off, or remove the project's VMs", noLimit)
	}
	*l.to = &n
	return nil
}

func (a *app) quotaSetCommand() *cobra.Command {
	limits := &blixardv1.QuotaLimits{}
	cmd := &cobra.Command{
		Use: "set PROJECT", Short: "Set or change the quota of a project", Args: exactly("PROJECT"), ValidArgsFunction: a.completeProjects,
		Long: `Set limits on what the VMs and volumes of a project may have in all. Only what is named changes; "unlimited" takes a limit off. They
count from their declaration until they are gone, VMs also while they are stopped. A quota below what the project has is taken: nothing
is stopped, and what would make it more is refused.

A project exists by being named: by "vm create --project", "volume create --project", or by a quota.`,
		Example: `  blixard quota set web --vms 10 --cpus 20 --memory 16GiB
  blixard quota set web --disk 200GiB --addresses 10
  blixard quota set batch --tasks 500
  blixard quota set web --vms unlimited`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().NFlag() == 0 || !limited(limits) {
				return usageError("no limit was named").WithHint("write `blixard quota set %s --vms 10`; see `blixard quota set --help`", args[0])
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Quotas().SetQuota(ctx, &blixardv1.SetQuotaRequest{Project: args[0], Limits: limits, IdempotencyKey: client.NewKey()})
				if err != nil {
					return err
				}
				q := resp.GetQuota()
				if err := a.say(q, "quota of %s: %s", q.GetProject(), limitsText(q.GetLimits())); err != nil {
					return err
				}
				return a.noteOver(resp.GetUsage())
			})
		},
	}
	f := cmd.Flags()
	f.Var(&limitFlag{to: &limits.Vms}, "vms", "VMs, also stopped ones")
	f.Var(&limitFlag{to: &limits.Vcpus}, "cpus", "virtual CPUs of all its VMs")
	f.Var(&limitFlag{to: &limits.MemoryMib, unit: units.MiB}, "memory", "memory of all its VMs, such as 16GiB")
	f.Var(&limitFlag{to: &limits.DiskBytes, unit: 1}, "disk", "root disks of all its VMs and its volumes, such as 200GiB")
	f.Var(&limitFlag{to: &limits.Tasks}, "tasks", "tasks that are not finished")
	f.Var(&limitFlag{to: &limits.Addresses}, "addresses", "IPv4 addresses leased to its VMs")
	return cmd
}

func limited(l *blixardv1.QuotaLimits) bool {
	return l.Vms != nil || l.Vcpus != nil || l.MemoryMib != nil || l.DiskBytes != nil || l.Addresses != nil || l.Tasks != nil
}

// noteOver tells on standard error that a quota is below what there is.
func (a *app) noteOver(u *blixardv1.ProjectUsage) error {
	if len(u.GetOver()) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(a.stderr, "note: project %s has more than that: %s; nothing is stopped, and what would make it more is refused\n",
		clean(u.GetProject()), overText(u))
	return err
}

// bounded is one of what a quota bounds: its field in the API, its words, what is used
// and what is allowed of it.
type bounded struct {
	field, column, word string
	used                uint64
	limit               *uint64
	text                func(uint64) string
}

func boundedOf(u *blixardv1.ProjectUsage) []bounded {
	number := func(n uint64) string { return strconv.FormatUint(n, 10) }
	memory := func(n uint64) string { return (units.Size(n) * units.MiB).Human() }
	disk := func(n uint64) string { return units.Size(n).Human() }
	l := u.GetLimits()
	if l == nil {
		l = &blixardv1.QuotaLimits{}
	}
	return []bounded{
		{"vms", "VMS", "VMs", u.GetVms(), l.Vms, number},
		{"vcpus", "CPUS", "CPUs", u.GetVcpus(), l.Vcpus, number},
		{"memory_mib", "MEMORY", "memory", u.GetMemoryMib(), l.MemoryMib, memory},
		{"disk_bytes", "DISK", "disk", u.GetDiskBytes(), l.DiskBytes, disk},
		{"addresses", "ADDRESSES", "addresses", u.GetAddresses(), l.Addresses, number},
		{"tasks", "TASKS", "tasks", u.GetTasks(), l.Tasks, number},
	}
}

// limitsText says in one line what a quota allows.
func limitsText(l *blixardv1.QuotaLimits) string {
	var words []string
	for _, r := range boundedOf(&blixardv1.ProjectUsage{Limits: l}) {
		if r.limit != nil {
			words = append(words, r.word+" "+r.text(*r.limit))
		}
	}
	if len(words) == 0 {
		return "no limits"
	}
	return strings.Join(words, ", ")
}

// overText says of what a project has more than its limit.
func overText(u *blixardv1.ProjectUsage) string {
	var words []string
	for _, r := range boundedOf(u) {
		for _, field := range u.GetOver() {
			if field == r.field && r.limit != nil {
				words = append(words, fmt.Sprintf("%s %s of %s", r.word, r.text(r.used), r.text(*r.limit)))
			}
		}
	}
	return strings.Join(words, ", ")
}

// limitWords are the cells of a quota.
func limitWords(l *blixardv1.QuotaLimits) []string {
	var cells []string
	for _, r := range boundedOf(&blixardv1.ProjectUsage{Limits: l}) {
		cell := noLimit
		if r.limit != nil {
			cell = r.text(*r.limit)
		}
		cells = append(cells, cell)
	}
	return cells
}

func quotaHeader(more ...string) []string {
	header := []string{"PROJECT"}
	for _, r := range boundedOf(nil) {
		header = append(header, r.column)
	}
	return append(header, more...)
}

func (a *app) quotaGetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get PROJECT", Aliases: []string{"show", "inspect"}, Short: "Show the quota of a project", Args: exactly("PROJECT"), ValidArgsFunction: a.completeProjects,
		Example: "  blixard quota get web\n  blixard quota get web -o json | jq .limits.vms",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Quotas().GetQuota(ctx, &blixardv1.GetQuotaRequest{Project: args[0]})
				if err != nil {
					return err
				}
				q := resp.GetQuota()
				return a.print(q, func() error {
					rows := [][2]string{{"Project", q.GetProject()}}
					cells := limitWords(q.GetLimits())
					for i, r := range boundedOf(nil) {
						rows = append(rows, [2]string{strings.ToUpper(r.word[:1]) + r.word[1:], cells[i]})
					}
					return a.facts(append(rows, [2]string{"Changed", at(q.GetChangedAt())}))
				})
			})
		},
	}
}

func (a *app) quotaListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the quotas", Args: exactly(),
		Example: "  blixard quota list\n  blixard quota list -o json | jq -r '.quotas[].project'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Quotas().ListQuotas(ctx, &blixardv1.ListQuotasRequest{})
				if err != nil {
					return err
				}
				return a.print(resp, func() error {
					t := &table{header: quotaHeader("CHANGED")}
					for _, q := range resp.GetQuotas() {
						t.add(append(append([]string{q.GetProject()}, limitWords(q.GetLimits())...), since(q.GetChangedAt()))...)
					}
					return a.writeTable(t)
				})
			})
		},
	}
}

// projectUsages asks for those of all projects, page by page.
func projectUsages(ctx context.Context, c *client.Client) (usages []*blixardv1.ProjectUsage, err error) {
	for token := ""; ; {
		resp, err := c.Quotas().QuotaUsage(ctx, &blixardv1.QuotaUsageRequest{PageToken: token})
		if err != nil {
			return nil, err
		}
		usages = append(usages, resp.GetUsages()...)
		if token = resp.GetNextPageToken(); token == "" {
			return usages, nil
		}
	}
}

func (a *app) quotaUsageCommand() *cobra.Command {
	return &cobra.Command{
		Use: "usage [PROJECT]", Short: "Show what projects have of their quotas", Args: atMostOne("PROJECT"), ValidArgsFunction: a.completeProjects,
		Long:    "Show what the VMs of a project have in all, and how much its quota allows; without PROJECT, of all that have a VM or a quota.",
		Example: "  blixard quota usage\n  blixard quota usage web -o json | jq .memoryMib",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				if len(args) == 1 {
					resp, err := c.Quotas().QuotaUsage(ctx, &blixardv1.QuotaUsageRequest{Project: args[0]})
					if err != nil {
						return err
					}
					return a.print(resp.GetUsages()[0], func() error { return a.usageTable(resp.GetUsages()) })
				}
				usages, err := projectUsages(ctx, c)
				if err != nil {
					return err
				}
				raw, err := list("usages", usages)
				if err != nil {
					return err
				}
				return a.print(raw, func() error { return a.usageTable(usages) })
			})
		},
	}
}

func (a *app) usageTable(usages []*blixardv1.ProjectUsage) error {
	t := &table{header: quotaHeader("NOTE")}
	for _, u := range usages {
		cells := []string{u.GetProject()}
		for _, r := range boundedOf(u) {
			cell := r.text(r.used)
			if r.limit != nil {
				cell += " of " + r.text(*r.limit)
			}
			cells = append(cells, cell)
		}
		note := ""
		if text := overText(u); text != "" {
			note = "over its quota: " + text
		}
		t.add(append(cells, note)...)
	}
	return a.writeTable(t)
}

func (a *app) quotaRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "remove PROJECT", Aliases: []string{"rm", "delete"}, Short: "Take all limits off a project", Args: exactly("PROJECT"), ValidArgsFunction: a.completeProjects,
		Long:    "Remove the quota of a project. Its VMs stay as they are.",
		Example: "  blixard quota remove web",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				_, err := c.Quotas().RemoveQuota(ctx, &blixardv1.RemoveQuotaRequest{Project: args[0], IdempotencyKey: client.NewKey()})
				if err != nil {
					return err
				}
				return a.say(&blixardv1.Quota{Project: args[0]}, "quota of %s removed", args[0])
			})
		},
	}
}
