package cli

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/units"
)

func (a *app) taskArtifactsCommand() *cobra.Command {
	var dir string
	get := &cobra.Command{
		Use: "get NAME", Short: "Write the files of a finished task below a directory", Args: exactly("NAME"), ValidArgsFunction: a.completeTasks,
		Long: `Write the files that a finished task left below a directory, with their paths in the guest. "-" writes a tar archive to standard output.
Owners and devices are not taken over.`,
		Example: "  blixard task artifacts get build --to out\n  blixard task artifacts get build --to - | tar t",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.taskArtifacts(cmd.Context(), a.full(args[0]), func(r io.Reader) error {
				if dir == "-" {
					_, err := io.Copy(a.stdout, r)
					return err
				}
				return unpack(r, dir, "")
			})
		},
	}
	get.Flags().StringVarP(&dir, "to", "d", ".", `directory, or "-" for a tar archive on standard output`)
	list := &cobra.Command{
		Use: "list NAME", Aliases: []string{"ls"}, Short: "List the files of a finished task", Args: exactly("NAME"), ValidArgsFunction: a.completeTasks,
		Example: "  blixard task artifacts list build",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.taskArtifacts(cmd.Context(), a.full(args[0]), a.listArtifacts)
		},
	}
	return noun("artifacts", "The files that tasks left", []string{"artifact"}, list, get)
}

func (a *app) listArtifacts(r io.Reader) error {
	t := &table{header: []string{"SIZE", "PATH"}}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name := "/" + h.Name
		if h.Linkname != "" {
			name += " -> " + h.Linkname
		}
		t.add(units.Size(h.Size).Human(), name)
	}
	return a.writeTable(t)
}

// taskArtifacts gives f the archive of a task's files; what is missing of them is told on
// standard error.
func (a *app) taskArtifacts(ctx context.Context, name string, f func(io.Reader) error) error {
	return a.withTask(ctx, name, func(ctx context.Context, c *client.Client) error {
		stream, err := c.Tasks().TaskArtifacts(ctx, &blixardv1.TaskArtifactsRequest{Name: name})
		if err != nil {
			return err
		}
		first, err := stream.Recv()
		if err != nil {
			return err
		}
		for _, note := range first.GetNotes() {
			if _, err := fmt.Fprintln(a.stderr, "note:", clean(note)); err != nil {
				return err
			}
		}
		return f(&artifactReader{stream: stream, rest: first.GetData()})
	})
}

type artifactReader struct {
	stream blixardv1.TaskService_TaskArtifactsClient
	rest   []byte
}

func (r *artifactReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		m, err := r.stream.Recv()
		if err != nil {
			return 0, err
		}
		r.rest = m.GetData()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
