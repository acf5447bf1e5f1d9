package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/blixard/blixard/internal/nearest"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/version"
)

// The groups of commands in the help.
const (
	groupVMs     = "vms"
	groupNode    = "node"
	groupCluster = "cluster"
	groupMore    = "more"
)

// usageTemplate is cobra's, without what says nothing here.
const usageTemplate = `Usage:
  {{.UseLine}}{{if .Aliases}}

Aliases:
  {{.NameAndAliases}}{{end}}{{if .HasExample}}

Examples:
{{.Example}}{{end}}{{if .HasAvailableSubCommands}}{{$cmds := .Commands}}{{if eq (len .Groups) 0}}

Commands:{{range $cmds}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{else}}{{range $group := .Groups}}

{{.Title}}{{range $cmds}}{{if and (eq .GroupID $group.ID) .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{end}}{{end}}{{if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableInheritedFlags}}

Flags of all commands:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}{{if .HasAvailableSubCommands}}

"{{.CommandPath}} COMMAND --help" tells more about a command.{{end}}
`

func (a *app) rootCommand() *cobra.Command {
	root := noun("blixard", "Run microVMs", nil)
	root.Long = "blixard runs microVMs on this host and, with others, on a cluster of hosts.\n\n" + exitHelp
	root.Example = `  blixard node start --detach
  blixard run busybox -- uname -a
  blixard vm create web --image busybox -- httpd -f -h /
  blixard vm list`
	root.Version = version.String()
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetVersionTemplate("blixard {{.Version}}\n")
	root.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true})
	root.SetFlagErrorFunc(flagError)
	root.SetUsageTemplate(usageTemplate)
	root.AddGroup(
		&cobra.Group{ID: groupVMs, Title: "VMs:"},
		&cobra.Group{ID: groupNode, Title: "Node:"},
		&cobra.Group{ID: groupCluster, Title: "Cluster:"},
		&cobra.Group{ID: groupMore, Title: "More:"},
	)
	flags := root.PersistentFlags()
	flags.StringVar(&a.addr, "addr", "", "node to speak to: unix:PATH or https://HOST:PORT (default: BLIXARD_ADDR, else the local node)")
	flags.StringVar(&a.credentials, "credentials", "", "file with credentials for https addresses (default: BLIXARD_CREDENTIALS)")
	flags.Var(&a.timeout, "timeout", "give up after that time (default: 30s for a call, 5m for a wait)")
	flags.VarP(&a.output, "output", "o", "form of the output: table, json or yaml")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(outputForms, cobra.ShellCompDirectiveNoFileComp))

	add := func(group string, commands ...*cobra.Command) {
		for _, c := range commands {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add(groupVMs, a.runCommand(), a.taskCommand(), a.scheduleCommand(), a.workerCommand(), a.groupCommand(), a.vmCommand(), a.imageCommand(), a.volumeCommand(), a.networkCommand(), a.secretCommand(), a.quotaCommand(),
		a.eventsCommand(), a.applyCommand(), a.diffCommand(), a.deleteCommand())
	add(groupNode, a.nodeCommand(), a.bundleCommand(), a.configCommand())
	add(groupCluster, a.clusterCommand(), a.schedulerCommand())
	add(groupMore, a.versionCommand(), a.debugCommand(), a.completionCommand(), a.helpCommand())
	root.AddCommand(a.supervisorCommand())
	return root
}

func (a *app) helpCommand() *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND]...", Short: "Tell about a command",
		Example: "  blixard help vm create",
		RunE: func(cmd *cobra.Command, args []string) error {
			found, rest, err := cmd.Root().Find(args)
			if err != nil || len(rest) > 0 {
				at := cmd.Root()
				if found != nil {
					at = found
				}
				return unknownCommand(at, args[len(args)-max(1, len(rest))])
			}
			found.InitDefaultHelpFlag()
			found.InitDefaultVersionFlag()
			return found.Help()
		},
	}
}

// unknownCommand names the nearest one.
func unknownCommand(at *cobra.Command, word string) error {
	var names []string
	for _, c := range at.Commands() {
		if !c.Hidden {
			names = append(append(names, c.Name()), c.Aliases...)
		}
	}
	p := usageError("unknown command %q for %q", word, at.CommandPath())
	if near := nearest.Of(word, names); near != "" {
		return p.WithHint("did you mean `%s %s`?", at.CommandPath(), near)
	}
	return p.WithHint("`%s --help` lists the commands", at.CommandPath())
}

// flagError names the nearest flag, and keeps a problem that a flag's value is.
func flagError(cmd *cobra.Command, err error) error {
	text := err.Error()
	p := usageError("%s", text)
	if _, name, found := strings.Cut(text, "unknown flag: --"); found {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if near := nearest.Of(name, names); near != "" {
			return p.WithHint("did you mean --%s?", near)
		}
	}
	if value := problem.From(err); value.Hint != "" {
		return p.WithHint("%s", value.Hint)
	}
	return p.WithHint("see `%s --help`", cmd.CommandPath())
}

// exactly wants that many arguments; what names them for the message.
func exactly(what ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(what) {
			return nil
		}
		if len(args) < len(what) {
			return usageError("%s is missing", what[len(args)]).WithHint("type `%s`, see `%s --help`", useLine(cmd), cmd.CommandPath())
		}
		return usageError("%q is one argument too many", args[len(what)]).WithHint("type `%s`, see `%s --help`", useLine(cmd), cmd.CommandPath())
	}
}

// atLeastOne wants one argument or more.
func atLeastOne(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return nil
		}
		return usageError("%s is missing", what).WithHint("type `%s`, see `%s --help`", useLine(cmd), cmd.CommandPath())
	}
}

func useLine(cmd *cobra.Command) string { return strings.TrimSuffix(cmd.UseLine(), " [flags]") }

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this program", Args: exactly(),
		Example: "  blixard version\n  blixard version -o json",
		RunE: func(*cobra.Command, []string) error {
			return a.print(fields{{"version", version.String()}}, func() error {
				_, err := fmt.Fprintf(a.stdout, "blixard %s\n", version.String())
				return err
			})
		},
	}
}

func (a *app) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use: "completion SHELL", Short: "Print a script that completes commands, flags and VM names in a shell",
		Long: "Print a script that completes commands, flags and VM names. SHELL is bash, zsh, fish or powershell.",
		Example: `  source <(blixard completion bash)
  blixard completion zsh > "${fpath[1]}/_blixard"
  blixard completion fish > ~/.config/fish/completions/blixard.fish`,
		Args:      exactly("SHELL"),
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return cmd.Root().GenBashCompletionV2(a.stdout, true)
			case "zsh":
				return cmd.Root().GenZshCompletion(a.stdout)
			case "fish":
				return cmd.Root().GenFishCompletion(a.stdout, true)
			case "powershell":
				return cmd.Root().GenPowerShellCompletionWithDesc(a.stdout)
			}
			p := usageError("there is no completion for %q", args[0])
			if near := nearest.Of(args[0], shells); near != "" {
				return p.WithHint("did you mean %s?", near)
			}
			return p.WithHint("it can be %s", strings.Join(shells, ", "))
		},
	}
}
