package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

func (a *app) volumeCommand() *cobra.Command {
	return noun("volume", "Keep disks that outlive VMs", []string{"volumes", "vol"},
		a.volumeCreateCommand(), a.volumeListCommand(), a.volumeShowCommand(), a.volumeResizeCommand(),
		a.volumeAttachCommand(), a.volumeDetachCommand(),
		a.volumeSnapshotCommand(), a.volumeRestoreCommand(), a.volumeCloneCommand(), a.volumeMoveCommand(), a.volumeDeleteCommand())
}

// say prints an object, or one line about it.
func (a *app) say(m proto.Message, format string, args ...any) error {
	return a.print(m, func() error {
		_, err := fmt.Fprintln(a.stdout, clean(fmt.Sprintf(format, args...)))
		return err
	})
}

func (a *app) volumeCreateCommand() *cobra.Command {
	req := &blixardv1.CreateVolumeRequest{}
	var size sizeFlag
	var labels []string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Declare a volume", Args: exactly("NAME"),
		Long: `Declare a volume. Its disk is made and formatted (ext4) when a VM first uses it, on that VM's node unless --node says which.
A volume is never deleted with a VM.

It counts to the disk of its project's quota, and only VMs of that project may have it; those of all projects may have one of
project default. Its name is unique among the volumes of all projects.`,
		Example: "  blixard volume create data --size 20GiB\n  blixard volume create goods --project shop\n  blixard run -v data:/var/lib/postgresql postgres:17",
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if req.Labels, err = parseLabels(labels); err != nil {
				return err
			}
			if cmd.Flags().Changed("size") && size == 0 {
				return usageError("--size is 0").WithHint("a volume has from 16MiB to 16TiB")
			}
			req.Name, req.SizeBytes, req.Project, req.IdempotencyKey = args[0], uint64(size), a.project, client.NewKey()
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Volumes().CreateVolume(ctx, req)
				if err != nil {
					return err
				}
				return a.say(resp.GetVolume(), "%s made, %s", resp.GetVolume().GetName(), units.Size(resp.GetVolume().GetSizeBytes()).Human())
			})
		},
	}
	cmd.Flags().Var(&size, "size", "size, such as 20GiB (default: 1GiB); the file is sparse")
	cmd.Flags().StringVar(&req.Node, "node", "", "node that shall have it (default: that of its first VM)")
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "label KEY=VALUE; may be repeated")
	a.projectFlag(cmd)
	return cmd
}

// vmNames gives the names of VMs by their ids.
func vmNames(ctx context.Context, c *client.Client) (map[string]string, error) {
	vms, err := c.AllVMs(ctx)
	names := map[string]string{}
	for _, vm := range vms {
		names[vm.GetId()] = vm.GetName()
	}
	return names, err
}

func users(v *blixardv1.Volume, names map[string]string) string {
	var out []string
	for _, id := range v.GetVmIds() {
		name := names[id]
		if name == "" {
			name = id
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (a *app) volumeListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the volumes", Args: exactly(), Example: "  blixard volume list\n  blixard volume list --project shop",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Volumes().ListVolumes(ctx, &blixardv1.ListVolumesRequest{})
				if err != nil {
					return err
				}
				names, err := vmNames(ctx, c)
				if err != nil {
					return err
				}
				resp.Volumes = slices.DeleteFunc(resp.Volumes, func(v *blixardv1.Volume) bool { return !a.ofProject(v) })
				return a.print(resp, func() error {
					t := &table{header: []string{"NAME", "PROJECT", "SIZE", "NODE", "VM", "SNAPSHOTS", "AGE"}, shrink: []int{4}}
					for _, v := range resp.GetVolumes() {
						node := v.GetNode()
						if v.GetDeleting() {
							node += " (deleting)"
						}
						t.add(v.GetName(), projectOf(v), units.Size(v.GetSizeBytes()).Human(), node, users(v, names), fmt.Sprint(len(v.GetSnapshots())), since(v.GetCreatedAt()))
					}
					return a.writeTable(t)
				})
			})
		},
	}
	a.projectFlag(cmd)
	return cmd
}

func (a *app) volumeShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Aliases: []string{"inspect"}, Short: "Show a volume and its snapshots", Args: exactly("NAME"), Example: "  blixard volume show data",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Volumes().GetVolume(ctx, &blixardv1.GetVolumeRequest{Name: args[0]})
				if err != nil {
					return err
				}
				names, err := vmNames(ctx, c)
				if err != nil {
					return err
				}
				return a.print(resp, func() error {
					v := resp.GetVolume()
					facts := [][2]string{
						{"name", v.GetName()},
						{"id", v.GetId()},
						{"project", projectOf(v)},
						{"size", units.Size(v.GetSizeBytes()).Human()},
						{"used", units.Size(resp.GetUsedBytes()).Human()},
						{"node", v.GetNode()},
						{"vm", users(v, names)},
						{"from", v.GetSource()},
					}
					for _, s := range v.GetSnapshots() {
						facts = append(facts, [2]string{"snapshot", s.GetName() + ", " + since(s.GetCreatedAt()) + " old"})
					}
					return a.facts(facts)
				})
			})
		},
	}
}

func (a *app) volumeResizeCommand() *cobra.Command {
	var size sizeFlag
	return &cobra.Command{
		Use: "resize NAME SIZE", Short: "Give a volume another size, with its file system", Args: exactly("NAME", "SIZE"),
		Long:    "Grow a volume and the file system on it, also while a VM uses it, or shrink one that is not in use and has the room.",
		Example: "  blixard volume resize data 40GiB",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := size.Set(args[1]); err != nil {
				return usageError("%q is no size", args[1]).WithHint("write it as 40GiB")
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				ctx, cancel := a.waiting(ctx)
				defer cancel()
				p := a.progress("resizing " + args[0])
				defer p.stop()
				resp, err := c.Volumes().ResizeVolume(ctx, &blixardv1.ResizeVolumeRequest{Name: args[0], SizeBytes: uint64(size), IdempotencyKey: client.NewKey()})
				if err != nil {
					return err
				}
				return a.say(resp.GetVolume(), "%s has %s", resp.GetVolume().GetName(), units.Size(resp.GetVolume().GetSizeBytes()).Human())
			})
		},
	}
}

func (a *app) volumeAttachCommand() *cobra.Command {
	var readOnly bool
	cmd := &cobra.Command{
		Use: "attach VM VOLUME PATH", Short: "Give a VM a volume", Args: exactly("VM", "VOLUME", "PATH"), ValidArgsFunction: a.completeVMs(1),
		Long:    "Give a VM a volume, mounted at PATH. The VM must be stopped: its machine can't take disks while it runs.",
		Example: "  blixard vm stop db && blixard volume attach db data /var/lib/postgresql && blixard vm start db",
		RunE: func(cmd *cobra.Command, args []string) error {
			at := &blixardv1.VolumeAttachment{Volume: args[1], Path: filepath.Clean(args[2]), ReadOnly: readOnly}
			return a.editVM(cmd.Context(), a.full(args[0]), func(spec *blixardv1.VMSpec) error {
				spec.Volumes = append(spec.Volumes, at)
				return nil
			}, "has volume "+args[1])
		},
	}
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "the VM only reads it; several may")
	a.projectFlag(cmd)
	return cmd
}

func (a *app) volumeDetachCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "detach VM VOLUME", Short: "Take a volume from a stopped VM", Args: exactly("VM", "VOLUME"), ValidArgsFunction: a.completeVMs(1),
		Example: "  blixard volume detach db data",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.editVM(cmd.Context(), a.full(args[0]), func(spec *blixardv1.VMSpec) error {
				before := len(spec.GetVolumes())
				spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v *blixardv1.VolumeAttachment) bool { return v.GetVolume() == args[1] })
				if len(spec.GetVolumes()) == before {
					return problem.New(problem.NotFound, "volume.not_attached", "VM %s has no volume %s", args[0], args[1]).WithHint("see `blixard vm status %s`", args[0])
				}
				return nil
			}, "gave volume "+args[1]+" back")
		},
	}
	a.projectFlag(cmd)
	return cmd
}

func (a *app) volumeSnapshotCommand() *cobra.Command {
	var remove bool
	cmd := &cobra.Command{
		Use: "snapshot NAME SNAPSHOT", Short: "Keep what is on a volume now", Args: exactly("NAME", "SNAPSHOT"),
		Long: `Keep what is on a volume now, under the name SNAPSHOT. A VM that uses the volume stands still meanwhile, and the snapshot is
what a loss of power at that moment would have left: let the guest sync first, or stop it.`,
		Example: "  blixard volume snapshot data before-upgrade\n  blixard volume snapshot data before-upgrade --delete",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				ctx, cancel := a.waiting(ctx)
				defer cancel()
				p := a.progress("copying " + args[0])
				defer p.stop()
				if remove {
					resp, err := c.Volumes().DeleteVolumeSnapshot(ctx, &blixardv1.DeleteVolumeSnapshotRequest{Name: args[0], Snapshot: args[1], IdempotencyKey: client.NewKey()})
					if err != nil {
						return err
					}
					return a.say(resp.GetVolume(), "snapshot %s deleted", args[1])
				}
				resp, err := c.Volumes().SnapshotVolume(ctx, &blixardv1.SnapshotVolumeRequest{Name: args[0], Snapshot: args[1], IdempotencyKey: client.NewKey()})
				if err != nil {
					return err
				}
				return a.say(resp.GetVolume(), "snapshot %s made", args[1])
			})
		},
	}
	cmd.Flags().BoolVar(&remove, "delete", false, "delete the snapshot instead")
	return cmd
}

func (a *app) volumeRestoreCommand() *cobra.Command {
	return &cobra.Command{
		Use: "restore NAME SNAPSHOT", Short: "Bring a volume back to a snapshot", Args: exactly("NAME", "SNAPSHOT"),
		Long:    "Bring a volume back to a snapshot. What was written since is gone. The VM that has it must be stopped.",
		Example: "  blixard volume restore data before-upgrade",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				ctx, cancel := a.waiting(ctx)
				defer cancel()
				p := a.progress("copying " + args[1])
				defer p.stop()
				resp, err := c.Volumes().RestoreVolume(ctx, &blixardv1.RestoreVolumeRequest{Name: args[0], Snapshot: args[1], IdempotencyKey: client.NewKey()})
				if err != nil {
					return err
				}
				return a.say(resp.GetVolume(), "%s is as %s", resp.GetVolume().GetName(), args[1])
			})
		},
	}
}

func (a *app) volumeCloneCommand() *cobra.Command {
	var snapshot string
	cmd := &cobra.Command{
		Use: "clone NAME NEW", Short: "Make another volume of one", Args: exactly("NAME", "NEW"),
		Long:    "Make another volume of one that is not in use, or of its snapshot.",
		Example: "  blixard volume clone data data-test --snapshot before-upgrade",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				ctx, cancel := a.waiting(ctx)
				defer cancel()
				p := a.progress("copying " + args[0])
				defer p.stop()
				resp, err := c.Volumes().CloneVolume(ctx, &blixardv1.CloneVolumeRequest{Name: args[0], NewName: args[1], Snapshot: snapshot, IdempotencyKey: client.NewKey()})
				if err != nil {
					return err
				}
				return a.say(resp.GetVolume(), "%s made", resp.GetVolume().GetName())
			})
		},
	}
	cmd.Flags().StringVar(&snapshot, "snapshot", "", "snapshot to make it of")
	return cmd
}

func (a *app) volumeMoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "move NAME NODE", Short: "Bring a volume to another node", Args: exactly("NAME", "NODE"),
		Long: `Bring a volume and its snapshots to another node. A VM that was placed must give it up first: "vm stop", then
"volume detach". "vm move" brings a VM with its volumes.
What was copied before a break is not copied again; the old node keeps its copy until the new one is whole and checked.`,
		Example: "  blixard volume move data node-2",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				v, err := a.moveVolume(ctx, c, args[0], args[1])
				if err != nil {
					return err
				}
				return a.say(v, "%s is on %s", v.GetName(), v.GetNode())
			})
		},
	}
}

func (a *app) volumeDeleteCommand() *cobra.Command {
	return &cobra.Command{
		Use: "delete NAME...", Aliases: []string{"rm"}, Short: "Delete volumes that no VM has, with their snapshots", Args: atLeastOne("NAME"), Example: "  blixard volume delete data",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				var wrong []error
				for _, name := range args {
					resp, err := c.Volumes().DeleteVolume(ctx, &blixardv1.DeleteVolumeRequest{Name: name, IdempotencyKey: client.NewKey()})
					if err != nil {
						wrong = append(wrong, err)
						continue
					}
					if err := a.say(resp.GetVolume(), "%s deleted", resp.GetVolume().GetName()); err != nil {
						return err
					}
				}
				return errors.Join(wrong...)
			})
		},
	}
}
