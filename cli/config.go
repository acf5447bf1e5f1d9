package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard/daemon/config"
)

func (a *app) configCommand() *cobra.Command {
	return noun("config", "Show and check the settings of a node", nil, a.configShowCommand(), a.configCheckCommand())
}

func (a *app) configShowCommand() *cobra.Command {
	var flags nodeFlags
	cmd := &cobra.Command{
		Use: "show", Short: "Print the effective settings and where each comes from", Args: exactly(),
		Long:    "Print the settings that `blixard node start` would use with the same flags, and where each comes from.",
		Example: "  blixard config show\n  blixard config show --config ./blixard.toml -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, _, settings, err := flags.load(cmd)
			if err != nil {
				return err
			}
			type row struct {
				Key    string `json:"key"`
				Value  string `json:"value"`
				Origin string `json:"origin"`
			}
			rows := []row{}
			t := &table{header: []string{"KEY", "VALUE", "FROM"}}
			for _, s := range settings {
				rows = append(rows, row{s.Key.Name, s.Value, s.Origin})
				value := s.Value
				if value == "" {
					value = "-"
				}
				t.add(s.Key.Name, value, s.Origin)
			}
			return a.print(map[string]any{"settings": rows}, func() error { return a.writeTable(t) })
		},
	}
	flags.register(cmd)
	return cmd
}

func (a *app) configCheckCommand() *cobra.Command {
	var flags nodeFlags
	cmd := &cobra.Command{
		Use: "check [FILE]", Short: "Say all that is wrong with the settings", Args: atMostOne("FILE"),
		Long:    "Read the settings as `blixard node start` would and say all that is wrong with them. Nothing is started or changed.",
		Example: "  blixard config check\n  blixard config check ./blixard.toml",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				if flags.file != "" {
					return usageError("the file is named twice").WithHint("leave --config out")
				}
				flags.file = args[0]
			}
			src, _, settings, err := flags.load(cmd)
			if err != nil {
				return err
			}
			return a.print(fields{{"result", "ok"}, {"file", src.File}}, func() error {
				changed := 0
				for _, s := range settings {
					if s.Origin != config.OriginDefault {
						changed++
					}
				}
				_, err := fmt.Fprintf(a.stdout, "ok: %d of %d settings differ from the defaults\n", changed, len(settings))
				return err
			})
		},
	}
	flags.register(cmd)
	return cmd
}
