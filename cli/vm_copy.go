package cli

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/objectname"
)

// copyChunkBytes is one message of a copy.
const copyChunkBytes = 64 << 10

func (a *app) vmCopyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "cp FROM TO", Short: "Copy files and directories into a running VM or out of it", Args: exactly("FROM", "TO"),
		Long: `Copy files and directories into a running VM or out of it. The VM's side is VM:PATH with an absolute path, or
PROJECT/VM:PATH; a path of this host that looks so is written with ./ before it. A directory that is
there gets the copy inside; otherwise the copy gets that name. "-" is a tar stream on standard input or output.`,
		Example: `  blixard vm cp app.conf web:/etc/app.conf
  blixard vm cp web:/var/log ./logs
  tar c site | blixard vm cp - web:/srv
  blixard vm cp web:/srv - | tar t`,
		RunE: func(cmd *cobra.Command, args []string) error {
			fromVM, fromPath := vmPath(args[0])
			toVM, toPath := vmPath(args[1])
			fromVM, toVM = a.full(fromVM), a.full(toVM)
			switch {
			case (fromVM == "") == (toVM == ""):
				return usageError("one side must be in a VM, and one here").WithHint("write VM:PATH for the VM's side, as in `blixard vm cp app.conf web:/etc/app.conf`")
			case toVM != "":
				return a.withVM(cmd.Context(), toVM, func(ctx context.Context, c *client.Client) error { return a.copyIn(ctx, c, args[0], toVM, toPath) })
			}
			return a.withVM(cmd.Context(), fromVM, func(ctx context.Context, c *client.Client) error { return a.copyOut(ctx, c, fromVM, fromPath, args[1]) })
		},
	}
}

// vmPath takes VM:/PATH apart, where VM may have its project; a path of this host has no VM.
func vmPath(text string) (vm, inside string) {
	name, rest, found := strings.Cut(text, ":")
	project, own := objectname.Split(name)
	if !found || project == "" || strings.ContainsAny(project+own, ".~") || objectname.Qualified(own) || !strings.HasPrefix(rest, "/") {
		return "", text
	}
	return name, rest
}

// copyIn sends a tar stream. What the copy is to be called depends on what is there.
func (a *app) copyIn(ctx context.Context, c *client.Client, from, vm, to string) error {
	if from == "-" {
		return a.sendTar(ctx, c, vm, to, func(w io.Writer) error { _, err := io.Copy(w, a.stdin); return err })
	}
	if _, err := os.Lstat(from); errors.Is(err, fs.ErrNotExist) {
		return usageError("there is no file %s", from).WithHint("see whether the path is right")
	} else if err != nil {
		return err
	}
	dir, name := path.Dir(path.Clean(to)), path.Base(path.Clean(to))
	isDir, err := guestHasDirectory(ctx, c, vm, to)
	if err != nil {
		return err
	}
	if isDir || strings.HasSuffix(to, "/") {
		abs, err := filepath.Abs(from)
		if err != nil {
			return err
		}
		dir, name = path.Clean(to), filepath.Base(abs)
	}
	return a.sendTar(ctx, c, vm, dir, func(w io.Writer) error { return writeTar(w, from, name) })
}

// guestHasDirectory looks whether a path of the guest is a directory: its copy begins
// with one.
func guestHasDirectory(ctx context.Context, c *client.Client, vm, p string) (bool, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := receiveTar(ctx, c, vm, p)
	if err != nil {
		return false, err
	}
	h, err := tar.NewReader(r).Next()
	if err != nil {
		return false, ignoreMissing(err)
	}
	return h.Typeflag == tar.TypeDir, nil
}

func (a *app) sendTar(ctx context.Context, c *client.Client, vm, dir string, write func(io.Writer) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.VMs().Copy(ctx)
	if err != nil {
		return err
	}
	p := a.progress("copying to " + vm)
	defer p.stop()
	start := &blixardv1.CopyStart{Name: vm, Path: dir, ToGuest: true}
	sendErr := stream.Send(&blixardv1.CopyRequest{Message: &blixardv1.CopyRequest_Start{Start: start}})
	if sendErr == nil {
		sendErr = write(copyWriter{stream})
	}
	if sendErr == nil {
		sendErr = stream.Send(&blixardv1.CopyRequest{Message: &blixardv1.CopyRequest_End{End: true}})
	}
	if sendErr != nil && !errors.Is(sendErr, io.EOF) {
		return sendErr
	}
	// What the other end says is more than that the stream broke.
	for {
		m, err := stream.Recv()
		if err != nil {
			return copyEnd(err)
		}
		if m.GetDone() {
			return nil
		}
	}
}

// copyEnd is the problem of a copy that ended without saying that it is whole.
func copyEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

type copyWriter struct {
	stream blixardv1.VMService_CopyClient
}

func (w copyWriter) Write(p []byte) (int, error) {
	for sent := 0; sent < len(p); {
		n := min(copyChunkBytes, len(p)-sent)
		if err := w.stream.Send(&blixardv1.CopyRequest{Message: &blixardv1.CopyRequest_Data{Data: p[sent : sent+n]}}); err != nil {
			return sent, err
		}
		sent += n
	}
	return len(p), nil
}

// copyReader gives the bytes of a copy, and an error unless it is whole.
type copyReader struct {
	stream blixardv1.VMService_CopyClient
	rest   []byte
	done   bool
}

func (r *copyReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.done {
			return 0, io.EOF
		}
		m, err := r.stream.Recv()
		if err != nil {
			return 0, copyEnd(err)
		}
		r.rest, r.done = m.GetData(), m.GetDone()
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func receiveTar(ctx context.Context, c *client.Client, vm, from string) (io.Reader, error) {
	stream, err := c.VMs().Copy(ctx)
	if err != nil {
		return nil, err
	}
	start := &blixardv1.CopyStart{Name: vm, Path: from}
	if err := stream.Send(&blixardv1.CopyRequest{Message: &blixardv1.CopyRequest_Start{Start: start}}); err != nil {
		return nil, firstError(err, func() error { _, err := stream.Recv(); return err })
	}
	return &copyReader{stream: stream}, nil
}

// copyOut receives a tar stream and unpacks it, or passes it on.
func (a *app) copyOut(ctx context.Context, c *client.Client, vm, from, to string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, err := receiveTar(ctx, c, vm, from)
	if err != nil {
		return err
	}
	p := a.progress("copying from " + vm)
	defer p.stop()
	if to == "-" {
		_, err := io.Copy(a.stdout, r)
		return err
	}
	dir, name := filepath.Dir(filepath.Clean(to)), filepath.Base(filepath.Clean(to))
	if st, err := os.Stat(to); err == nil && st.IsDir() || strings.HasSuffix(to, "/") {
		dir, name = to, ""
	}
	return unpack(r, dir, name)
}
