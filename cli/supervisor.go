package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/version"
	"github.com/blixard/blixard/supervisor"
)

// supervisorCommand is what the daemon starts; people do not.
func (a *app) supervisorCommand() *cobra.Command {
	var lane, dir string
	cmd := &cobra.Command{
		Use: "supervisor", Short: "Own the hypervisors of a lane; started by the node", Hidden: true, Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			return supervisor.Run(context.Background(), supervisor.Config{Lane: driver.Lane(lane), Dir: dir, Version: version.String()})
		},
	}
	cmd.Flags().StringVar(&lane, "lane", "", "shared or exclusive")
	cmd.Flags().StringVar(&dir, "dir", "", "directory of the lanes")
	return cmd
}
