package daemon_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/gzip"

	"github.com/blixard/blixard/internal/filelock"
)

const (
	// debianTimeout bounds the making of the Debian: 100 seconds on a quiet machine.
	debianTimeout = 15 * time.Minute
	// debianSteps is raised whenever the way from the recipe to the layer changes.
	debianSteps = 1
)

// What the Debian has of our own. The database is made while it is packed, and
// copied onto the volume by its first VM.
const (
	debianPage  = "a page of the Debian\n"
	debianServe = `#!/bin/sh
# Serves pages and the database on the volume.
set -e
/usr/local/bin/fill
install -d -o postgres -g postgres /run/postgresql
nginx
exec setpriv --reuid postgres --regid postgres --init-groups /usr/lib/postgresql/15/bin/postgres \
	-D /var/lib/postgresql/15/main -c config_file=/etc/postgresql/15/main/postgresql.conf
`
	debianFill = `#!/bin/sh
# Gives an empty volume the database.
set -e
cd /var/lib/postgresql
[ ! -e 15 ] || exit 0
rm -rf part
cp -a /usr/share/first/15 part
sync
mv part 15
`
	debianUnit = `[Service]
ExecStartPre=+/usr/local/bin/fill
`
	debianConf = `listen_addresses = '*'
ssl = off
`
	debianAccess = `host all all 0.0.0.0/0 trust
local all all trust
`
)

// debianRecipe are mmdebstrap's arguments: a Debian with systemd, a web server, a
// database and cloud-init.
func debianRecipe() []string {
	put := func(path, text string) string {
		return fmt.Sprintf(`--customize-hook=mkdir -p "$1"%s && cat >"$1"%s <<'END'%s%sEND`, filepath.Dir(path), path, "\n", text)
	}
	return []string{
		"--variant=minbase", "--include=systemd-sysv,udev,nginx-light,postgresql,cloud-init", "--format=tar", "--quiet",
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/man/*",
		`--customize-hook=rm -f "$1"/usr/sbin/policy-rc.d`,
		`--customize-hook=systemctl --root="$1" mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer`,
		put("/usr/local/bin/serve", debianServe), put("/usr/local/bin/fill", debianFill),
		put("/var/www/html/index.html", debianPage),
		put("/etc/systemd/system/postgresql@.service.d/fill.conf", debianUnit),
		put("/etc/postgresql/15/main/conf.d/own.conf", debianConf),
		put("/etc/postgresql/15/main/pg_hba.conf", debianAccess),
		`--customize-hook=chmod 755 "$1"/usr/local/bin/*`,
		`--customize-hook=mkdir "$1"/usr/share/first && mv "$1"/var/lib/postgresql/15 "$1"/usr/share/first/`,
	}
}

// debianLayer gives the path of a Debian as the layer of an image. It is made once
// from this machine's package sources, and kept below BLIXARD_CACHE_DIR by what it is
// made of.
func debianLayer(t testing.TB) string {
	t.Helper()
	cache := os.Getenv("BLIXARD_CACHE_DIR")
	if cache == "" {
		home, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(home, "blixard")
	}
	sources := "/etc/apt/sources.list.d/debian.sources"
	text, err := os.ReadFile(sources)
	if errors.Is(err, os.ErrNotExist) {
		sources = "/etc/apt/sources.list"
		text, err = os.ReadFile(sources)
	}
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\x00%s\x00%s", debianSteps, strings.Join(debianRecipe(), "\x00"), text))
	path := filepath.Join(cache, "debian-served", hex.EncodeToString(sum[:16])+".tar.gz")
	ctx, cancel := context.WithTimeout(context.Background(), debianTimeout)
	defer cancel()
	release, err := filelock.Acquire(ctx, path+".lock")
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		err = makeDebian(ctx, sources, path)
		if err != nil {
			t.Fatal(err)
		}
	} else if err != nil {
		t.Fatal(err)
	}
	return path
}

func makeDebian(ctx context.Context, sources, path string) error {
	out, err := os.Create(path + ".part")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(path + ".part") }()
	packed, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err != nil {
		return errors.Join(err, out.Close())
	}
	var errs bytes.Buffer
	cmd := exec.CommandContext(ctx, "mmdebstrap", append(debianRecipe(), "bookworm", "-", sources)...)
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = packed, &errs, time.Second
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("mmdebstrap: %w\n%s", err, errs.String())
	}
	if err := errors.Join(err, packed.Close(), out.Sync(), out.Close()); err != nil {
		return err
	}
	return os.Rename(path+".part", path)
}

// debianImage packs the Debian as an OCI image.
func debianImage(t testing.TB) v1.Image {
	t.Helper()
	layer, err := tarball.LayerFromFile(debianLayer(t))
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", "amd64"
	cfg.Config.Cmd, cfg.Config.StopSignal = []string{"/usr/local/bin/serve"}, "SIGINT" // which PostgreSQL ends fast by
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	return img
}

// pushDebian pushes the image to a registry that a host has on its loopback.
func pushDebian(t testing.TB, h *hosts, k int, image string) {
	t.Helper()
	img := debianImage(t)
	ref, err := name.ParseReference(image)
	if err != nil {
		t.Fatal(err)
	}
	transport := h.transport(k)
	defer transport.CloseIdleConnections()
	if err := remote.Write(ref, img, remote.WithTransport(transport), remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// startRegistry starts Debian's registry on a host's loopback and gives its address.
func startRegistry(t testing.TB, h *hosts, k int) string {
	t.Helper()
	const address = "127.0.0.1:5000"
	dir := t.TempDir()
	config := filepath.Join(dir, "config.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %q}\n", filepath.Join(dir, "registry"), address)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command("nsenter", "--net="+h.path(k), "docker-registry", "serve", config)
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the registry's log:\n%s", log.String())
		}
	})
	eventually(t, "the registry answers", 30*time.Second, func() bool {
		_, err := h.get(k, "http://"+address+"/v2/")
		return err == nil
	})
	return address
}
