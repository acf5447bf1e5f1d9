package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

// importChunkBytes is one message of a file on its way to a node.
const importChunkBytes = 256 << 10

func (a *app) imageCommand() *cobra.Command {
	return noun("image", "Bring in and keep the images that VMs run", []string{"images"},
		a.imagePullCommand(), a.imageImportCommand(), a.imageListCommand(), a.imageShowCommand(), a.imageRemoveCommand(), a.imagePruneCommand())
}

func (a *app) imagePullCommand() *cobra.Command {
	req := &blixardv1.PullImageRequest{}
	var passwordStdin bool
	cmd := &cobra.Command{
		Use: "pull IMAGE", Short: "Bring an image from its registry", Args: exactly("IMAGE"),
		Long: `Bring an image from its registry and make it a root disk. Its name stands for what was brought from then on, on every
node: VMs that are started later get that, and other nodes copy it from here. A VM whose image is not there yet pulls it
by itself.

Credentials are those of the node's docker configuration, of a secret that holds USER:PASSWORD, or given here.`,
		Example: `  blixard image pull nginx:1.27
  blixard image pull 127.0.0.1:5000/team/app@sha256:0123...
  blixard image pull registry.example.com/app --secret registry
  pass show registry | blixard image pull registry.example.com/app --username ci --password-stdin`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			if passwordStdin {
				text, err := io.ReadAll(io.LimitReader(a.stdin, guestFileBytesMax))
				if err != nil {
					return err
				}
				req.Password = strings.TrimRight(string(text), "\r\n")
			}
			if (req.GetUsername() == "") != (req.GetPassword() == "") {
				return usageError("a user without a password, or the other way round").WithHint("give --username and --password-stdin")
			}
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				i, err := a.pullImage(ctx, c, req)
				if err != nil {
					return err
				}
				return a.print(i, func() error { return a.sayImage(i) })
			})
		},
	}
	cmd.Flags().StringVar(&req.Username, "username", "", "user of the registry")
	cmd.Flags().BoolVar(&passwordStdin, "password-stdin", false, "read the password from standard input")
	cmd.Flags().StringVar(&req.Secret, "secret", "", "secret of the cluster with USER:PASSWORD")
	return cmd
}

func (a *app) sayImage(i *blixardv1.Image) error {
	_, err := fmt.Fprintf(a.stdout, "%s\n%s, root disk of %s (%s)\n", clean(i.GetName()), clean(i.GetDigest()), units.Size(i.GetDiskBytes()).Human(), clean(i.GetFsType()))
	return err
}

// pullImage pulls with a bar on a terminal, and lines elsewhere.
func (a *app) pullImage(ctx context.Context, c *client.Client, req *blixardv1.PullImageRequest) (*blixardv1.Image, error) {
	stream, err := c.Images().PullImage(ctx, req)
	if err != nil {
		return nil, err
	}
	bar := a.bar(req.GetName())
	defer bar.stop()
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, problem.New(problem.Unavailable, "image.pull_lost", "the end of the pull was not seen").WithHint("run it again: it goes on where it was")
		}
		if err != nil {
			return nil, err
		}
		if m.GetImage() != nil {
			return m.GetImage(), nil
		}
		bar.set(m.GetPhase(), m.GetDoneBytes(), m.GetTotalBytes())
	}
}

func (a *app) imageImportCommand() *cobra.Command {
	start := &blixardv1.ImportStart{}
	var disk bool
	cmd := &cobra.Command{
		Use: "import FILE", Short: "Take an image from an archive or a disk", Args: exactly("FILE"),
		Long: `Take an image from a file; "-" is standard input. An archive is what "docker save" or "skopeo copy" to oci-archive make,
or a directory with an OCI layout. A disk is a raw or qcow2 file whose system boots as a whole.`,
		Example: `  docker save app:1.0 | blixard image import -
  blixard image import ./layout --name app:1.0
  blixard image import --disk debian.qcow2 --name debian-disk`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.importImage(cmd.Context(), args[0], start, disk)
		},
	}
	cmd.Flags().StringVar(&start.Name, "name", "", "name of the image (default: the archive's own)")
	cmd.Flags().BoolVar(&disk, "disk", false, "the file is a disk")
	cmd.Flags().StringVar(&start.Format, "format", "", "archive, raw or qcow2 (default: by the file's beginning)")
	complete(cmd, "format", "archive", "raw", "qcow2")
	return cmd
}

// qcow2Magic begins every qcow2 file.
const qcow2Magic = "QFI\xfb"

// openImport opens what is to be imported, as one stream.
func (a *app) openImport(path string, start *blixardv1.ImportStart, disk bool) (io.ReadCloser, int64, error) {
	if path == "-" {
		if start.GetFormat() == "" && disk {
			return nil, 0, usageError("the format of standard input is not known").WithHint("add --format raw or --format qcow2")
		}
		if start.GetFormat() == "" {
			start.Format = "archive"
		}
		return io.NopCloser(a.stdin), 0, nil
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, usageError("there is no file %s", path).WithHint("see whether the path is right")
	}
	if err != nil {
		return nil, 0, err
	}
	if st.IsDir() {
		if disk {
			return nil, 0, usageError("%s is a directory", path).WithHint("--disk wants a file")
		}
		start.Format = "archive"
		return tarOf(path), 0, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	if start.GetFormat() == "" {
		start.Format = "archive"
		if disk {
			start.Format = "raw"
			magic := make([]byte, len(qcow2Magic))
			if n, _ := f.ReadAt(magic, 0); n == len(magic) && string(magic) == qcow2Magic {
				start.Format = "qcow2"
			}
		}
	}
	return f, st.Size(), nil
}

func (a *app) importImage(ctx context.Context, path string, start *blixardv1.ImportStart, disk bool) error {
	if disk && start.GetName() == "" {
		return usageError("--name is missing").WithHint("a disk has no name of its own: add --name debian-disk")
	}
	in, size, err := a.openImport(path, start, disk)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	return a.withClient(ctx, func(ctx context.Context, c *client.Client) error {
		stream, err := c.Images().ImportImage(ctx)
		if err != nil {
			return err
		}
		bar := a.bar(filepath.Base(path))
		err = sendImport(stream, in, start, func(done uint64) { bar.set("sending", done, uint64(size)) })
		bar.set("building", 0, 0)
		resp, endErr := stream.CloseAndRecv()
		bar.stop()
		if endErr != nil {
			return endErr
		}
		if err != nil {
			return err
		}
		return a.print(resp, func() error {
			for _, i := range resp.GetImages() {
				if err := a.sayImage(i); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func sendImport(stream blixardv1.ImageService_ImportImageClient, in io.Reader, start *blixardv1.ImportStart, told func(uint64)) error {
	err := stream.Send(&blixardv1.ImportImageRequest{Message: &blixardv1.ImportImageRequest_Start{Start: start}})
	buf, done := make([]byte, importChunkBytes), uint64(0)
	for err == nil {
		n, readErr := io.ReadFull(in, buf)
		if n > 0 {
			err = stream.Send(&blixardv1.ImportImageRequest{Message: &blixardv1.ImportImageRequest_Data{Data: buf[:n]}})
			done += uint64(n)
			told(done)
		}
		switch {
		case readErr == io.EOF || readErr == io.ErrUnexpectedEOF: //nolint:errorlint // io.ReadFull gives these bare
			return ignoreEOF(err)
		case readErr != nil:
			return readErr
		}
	}
	return ignoreEOF(err)
}

// ignoreEOF is for sending on a stream whose other end has said why it ended.
func ignoreEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (a *app) imageListCommand() *cobra.Command {
	var stale bool
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the images of the cluster", Args: exactly(), Example: "  blixard image list",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Images().ListImages(ctx, &blixardv1.ListImagesRequest{Stale: stale})
				if err != nil {
					return err
				}
				return a.print(resp, func() error {
					t := &table{header: []string{"NAME", "DIGEST", "DISK", "FROM", "NODES", "AGE"}, shrink: []int{0, 1}}
					for _, i := range resp.GetImages() {
						size := ""
						if i.GetDiskBytes() > 0 {
							size = units.Size(i.GetDiskBytes()).Human()
						}
						t.add(i.GetName(), shortDigest(i.GetDigest()), size, i.GetSource(), fmt.Sprint(len(i.GetNodeIds())), since(i.GetCreatedAt()))
					}
					return a.writeTable(t)
				})
			})
		},
	}
	cmd.Flags().BoolVar(&stale, "stale", false, "what the asked node knows, also without a leader")
	return cmd
}

// shortDigest is what people compare.
func shortDigest(digest string) string {
	const digits = 12
	hex := strings.TrimPrefix(digest, "sha256:")
	return hex[:min(len(hex), digits)]
}

func (a *app) imageShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show IMAGE", Aliases: []string{"inspect"}, Short: "Show an image and the VMs that use it", Args: exactly("IMAGE"), Example: "  blixard image show nginx:1.27",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Images().GetImage(ctx, &blixardv1.GetImageRequest{Name: args[0]})
				if err != nil {
					return err
				}
				return a.print(resp, func() error {
					i, cfg := resp.GetImage(), resp.GetImage().GetConfig()
					signal := ""
					if cfg.GetStopSignal() != 0 {
						signal = fmt.Sprint(cfg.GetStopSignal())
					}
					return a.facts([][2]string{
						{"name", i.GetName()},
						{"digest", i.GetDigest()},
						{"from", i.GetSource()},
						{"disk", units.Size(i.GetDiskBytes()).Human() + " " + i.GetFsType()},
						{"disk digest", i.GetDiskDigest()},
						{"entrypoint", strings.Join(cfg.GetEntrypoint(), " ")},
						{"command", strings.Join(cfg.GetCommand(), " ")},
						{"environment", strings.Join(cfg.GetEnv(), " ")},
						{"user", cfg.GetUser()},
						{"directory", cfg.GetWorkingDir()},
						{"ports", strings.Join(cfg.GetExposedPorts(), " ")},
						{"stop signal", signal},
						{"nodes", fmt.Sprint(len(i.GetNodeIds()))},
						{"vms", strings.Join(resp.GetVms(), " ")},
					})
				})
			})
		},
	}
}

func (a *app) imageRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "remove IMAGE...", Aliases: []string{"rm", "delete"}, Short: "Remove images that no VM uses", Args: atLeastOne("IMAGE"), Example: "  blixard image remove nginx:1.27",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				var wrong []error
				for _, name := range args {
					resp, err := c.Images().RemoveImage(ctx, &blixardv1.RemoveImageRequest{Name: name, IdempotencyKey: client.NewKey()})
					if err != nil {
						wrong = append(wrong, err)
						continue
					}
					if err := a.say(resp.GetImage(), "%s removed", resp.GetImage().GetName()); err != nil {
						return err
					}
				}
				return errors.Join(wrong...)
			})
		},
	}
}

func (a *app) imagePruneCommand() *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove all images that no VM uses", Args: exactly(), Example: "  blixard image prune --dry-run\n  blixard image prune",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withClient(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				resp, err := c.Images().PruneImages(ctx, &blixardv1.PruneImagesRequest{DryRun: dry, IdempotencyKey: client.NewKey()})
				if err != nil {
					return err
				}
				return a.print(resp, func() error {
					word := "removed"
					if dry {
						word = "would be removed"
					}
					var bytes uint64
					for _, i := range resp.GetImages() {
						bytes += i.GetDiskBytes()
						if _, err := fmt.Fprintf(a.stdout, "%s %s\n", clean(i.GetName()), word); err != nil {
							return err
						}
					}
					_, err := fmt.Fprintf(a.stdout, "%d images, %s on each node that had them\n", len(resp.GetImages()), units.Size(bytes).Human())
					return err
				})
			})
		},
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only list them")
	return cmd
}

// bar shows on standard error how far something is: a bar on a terminal, and else
// what progress shows.
type bar struct {
	p     *progress
	a     *app
	what  string
	fd    int
	lines bool
}

func (a *app) bar(what string) *bar {
	fd, ok := terminalOf(a.stderr)
	b := &bar{a: a, what: what, fd: fd, lines: !ok || a.env("TERM") == "dumb"}
	if b.lines {
		b.p = a.progress(what)
	}
	return b
}

// barWidth in characters.
const barWidth = 24

func (b *bar) set(phase string, done, total uint64) {
	text := fmt.Sprintf("%s: %s", b.what, phase)
	if done > 0 {
		text += " " + units.Size(done).Human()
		if total > 0 {
			text += " of " + units.Size(total).Human()
		}
	}
	if b.lines {
		// Lines are for each phase, not for each byte.
		b.p.set("%s: %s", b.what, phase)
		return
	}
	if total > 0 {
		full := int(min(done, total) * barWidth / total)
		text += " [" + strings.Repeat("#", full) + strings.Repeat(".", barWidth-full) + "]"
	}
	width := 80
	if w, _, err := term.GetSize(b.fd); err == nil && w > 0 {
		width = w
	}
	_, _ = fmt.Fprintf(b.a.stderr, "\r\x1b[K%s", shortenTo(clean(text), width-1))
}

// stop takes the bar away.
func (b *bar) stop() {
	if b.lines {
		b.p.stop()
		return
	}
	_, _ = io.WriteString(b.a.stderr, "\r\x1b[K")
}
