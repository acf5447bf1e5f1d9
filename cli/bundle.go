package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/blixard/blixard/daemon/config"
	"github.com/blixard/blixard/guest/bundle"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
	"github.com/blixard/blixard/internal/version"
)

func (a *app) bundleCommand() *cobra.Command {
	return noun("bundle", "Build, show and verify the guest bundle: kernels, initramfs and images", nil,
		a.bundleBuildCommand(), a.bundleShowCommand(), a.bundleVerifyCommand())
}

// findBundle opens the bundle in dir, or the one that the node would use.
func findBundle(dir string) (*bundle.Bundle, error) {
	if dir != "" {
		return bundle.Open(dir)
	}
	src, err := config.System()
	if err != nil {
		return nil, err
	}
	cfg, _, err := config.Load(src)
	if err != nil {
		return nil, err
	}
	executable, err := os.Executable()
	if err != nil {
		executable = ""
	}
	dirs := config.BundleDirs(cfg, executable)
	for _, d := range dirs {
		b, err := bundle.Open(d)
		if !problem.Is(err, problem.NotFound) {
			return b, err
		}
	}
	return nil, problem.New(problem.NotFound, "bundle.missing", "there is no guest bundle in %s", strings.Join(dirs, ", ")).
		WithHint("make one with `blixard bundle build`, or name its directory")
}

func (a *app) bundleBuildCommand() *cobra.Command {
	var output, own, guest string
	var custom, customACPI []string
	cmd := &cobra.Command{
		Use: "build", Short: "Build the guest bundle from Debian's packages", Args: cobra.NoArgs,
		Long: `Build the guest bundle: Debian's stock cloud kernel, blixard's own kernel, the initramfs with blixard-guest, and
the built-in image busybox. What is needed is downloaded by apt-get, unpacked and kept in the cache; nothing is installed.`,
		Example: `  blixard bundle build
  blixard bundle build --own-kernel build      # compiles our own kernel, about 5 minutes
  blixard bundle build --kernel mine=./vmlinux`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			src, err := config.System()
			if err != nil {
				return err
			}
			cfg, _, err := config.Load(src)
			if err != nil {
				return err
			}
			c := bundle.Config{
				Dir: output, CacheDir: cfg.CacheDir, Guest: guest, GuestVersion: version.String(), OwnKernel: bundle.OwnKernel(own),
				Progress: func(line string) { _, _ = fmt.Fprintln(a.stderr, line) },
			}
			if c.Dir == "" {
				c.Dir = config.DefaultBundleDir(cfg)
			}
			if c.Guest == "" {
				c.Guest = guestProgram()
			}
			for k, list := range [][]string{custom, customACPI} {
				for _, one := range list {
					name, path, ok := strings.Cut(one, "=")
					if !ok {
						return problem.New(problem.Invalid, "bundle.kernel_flag", "--kernel %q is not NAME=FILE", one).
							WithHint("for example: --kernel mine=./vmlinux")
					}
					c.Custom = append(c.Custom, bundle.CustomKernel{Name: name, Path: path, ACPI: k == 1})
				}
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			if _, err := bundle.Build(ctx, c); err != nil {
				return causeOf(ctx, err)
			}
			b, err := bundle.Open(c.Dir)
			if err != nil {
				return err
			}
			return a.print(b.Manifest(), func() error { return a.bundleTable(b) })
		},
	}
	f := cmd.Flags()
	f.StringVar(&output, "output", "", "directory of the bundle (default: where the node looks for it)")
	f.StringVar(&own, "own-kernel", string(bundle.OwnCached), "blixard's own kernel: cached, build or none")
	f.StringVar(&guest, "guest", "", "the program blixard-guest (default: beside this program)")
	f.StringArrayVar(&custom, "kernel", nil, "add a kernel of your own as NAME=FILE")
	f.StringArrayVar(&customACPI, "kernel-acpi", nil, "the same for one that finds its devices by ACPI")
	return cmd
}

// guestProgram is blixard-guest beside this program.
func guestProgram() string {
	executable, err := os.Executable()
	if err != nil {
		return "blixard-guest"
	}
	return filepath.Join(filepath.Dir(executable), "blixard-guest")
}

func (a *app) bundleShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show [DIR]", Short: "Show what is in the guest bundle", Args: atMostOne("DIR"),
		Long:    "Show what is in the bundle of DIR, or in the one that the node uses.",
		Example: "  blixard bundle show\n  blixard bundle show -o json",
		RunE: func(_ *cobra.Command, args []string) error {
			b, err := findBundle(strings.Join(args, ""))
			if err != nil {
				return err
			}
			return a.print(b.Manifest(), func() error { return a.bundleTable(b) })
		},
	}
}

func (a *app) bundleVerifyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "verify [DIR]", Short: "Check the digest of every file of the guest bundle", Args: atMostOne("DIR"),
		Long:    "Check the digest of every file in the bundle of DIR, or in the one that the node uses.",
		Example: "  blixard bundle verify",
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := findBundle(strings.Join(args, ""))
			if err != nil {
				return err
			}
			ctx, stop := untilSignal(cmd.Context())
			defer stop()
			if err := a.verifyBundle(ctx, b); err != nil {
				return causeOf(ctx, err)
			}
			return a.print(fields{{"result", "ok"}, {"dir", b.Dir()}}, func() error {
				_, err := fmt.Fprintf(a.stdout, "ok: %s\n", b.Dir())
				return err
			})
		},
	}
}

func (a *app) verifyBundle(ctx context.Context, b *bundle.Bundle) error {
	p := a.progress("reading " + b.Dir())
	defer p.stop()
	return b.Verify(ctx)
}

func (a *app) bundleTable(b *bundle.Bundle) error {
	m := b.Manifest()
	t := &table{header: []string{"KIND", "NAME", "VERSION", "SIZE", "DIGEST"}, shrink: []int{4}}
	for _, k := range m.Kernels {
		t.add("kernel", k.Name, k.Version, units.Size(k.Bytes).Human(), k.SHA256)
		t.add("initramfs", k.Name, "", units.Size(k.Initramfs.Bytes).Human(), k.Initramfs.SHA256)
	}
	for _, i := range m.Images {
		t.add("image", i.Name, "", units.Size(i.Bytes).Human(), i.SHA256)
	}
	if _, err := fmt.Fprintf(a.stdout, "%s\n", b.Dir()); err != nil {
		return err
	}
	return a.writeTable(t)
}
