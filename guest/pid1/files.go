//go:build linux

package pid1

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/blixard/blixard/guest/wire"
)

// All of this runs when the image is the root: a symbolic link of the image leads nowhere else.

const (
	// secretsOptions: wire.MaxConfigure bounds all secrets, the rest is for their rounding to pages.
	secretsOptions = "size=8m,nr_inodes=1k,mode=0755"
	// boundDir holds a secret for the moment before it is mounted over its path.
	boundDir = wire.SecretsDir + "/.bound"
	seedDir  = "/var/lib/cloud/seed/nocloud"
)

// seedNetwork keeps cloud-init from the addresses, which the agent has set when it comes.
const seedNetwork = "config: disabled\n"

// cloudInit are files of which an image with cloud-init has at least one.
var cloudInit = []string{"/usr/bin/cloud-init", "/etc/cloud/cloud.cfg"}

// checkPath refuses what is no plain absolute path below the root.
func checkPath(path string) error {
	if len(path) < 2 || path[0] != '/' || len(path) > wire.MaxPath || strings.IndexByte(path, 0) >= 0 {
		return fmt.Errorf("no absolute path: %.128q", path)
	}
	for part := range strings.SplitSeq(path[1:], "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("no path without dots: %.128q", path)
		}
	}
	return nil
}

// parentDir makes the directory that a path lies in.
func parentDir(path string) error {
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		return makeDir(path[:i])
	}
	return nil
}

// writeFile makes a file in place of what is at its path, unless that is a directory. No other program sees
// it half written: none runs yet.
func writeFile(f *wire.File) error {
	if err := parentDir(f.Path); err != nil {
		return err
	}
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_CLOEXEC
	fd, err := unix.Open(f.Path, flags, 0o600)
	if err == unix.EEXIST {
		if err = unix.Unlink(f.Path); err == nil {
			fd, err = unix.Open(f.Path, flags, 0o600)
		}
	}
	if err != nil {
		return &os.PathError{Op: "make", Path: f.Path, Err: err}
	}
	err = fill(fd, f)
	if closeErr := unix.Close(fd); err == nil {
		err = closeErr
	}
	if err != nil {
		return &os.PathError{Op: "write", Path: f.Path, Err: err}
	}
	return nil
}

// fill gives an open file its content, owner and mode, the mode last: a change of owner takes bits from it.
func fill(fd int, f *wire.File) error {
	for b := f.Content; len(b) > 0; {
		n, err := ignoringEINTR(func() (int, error) { return unix.Write(fd, b) })
		if err != nil {
			return err
		}
		b = b[n:]
	}
	if f.UID != 0 || f.GID != 0 {
		if err := unix.Fchown(fd, int(f.UID), int(f.GID)); err != nil {
			return err
		}
	}
	mode := f.Mode
	if mode == 0 {
		mode = wire.FileMode
	}
	return unix.Fchmod(fd, mode&0o7777)
}

// placeSecrets puts the secrets in memory of their own. Invariant: no byte of a secret is ever written to
// another file system.
func placeSecrets(secrets []wire.File) error {
	if len(secrets) == 0 {
		return nil
	}
	if err := mountAt("secrets", wire.SecretsDir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, secretsOptions); err != nil {
		return err
	}
	for i := range secrets {
		if err := placeSecret(secrets[i], i); err != nil {
			return fmt.Errorf("secret: %w", err)
		}
	}
	_ = unix.Rmdir(boundDir)
	if err := unix.Mount("", wire.SecretsDir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", wire.SecretsDir, err)
	}
	return nil
}

// placeSecret writes one secret below SecretsDir. One with a path elsewhere is then mounted over that path,
// where an empty file is made for it, and loses its first name.
func placeSecret(f wire.File, number int) error {
	if f.Mode == 0 {
		f.Mode = wire.SecretMode
	}
	target := f.Path
	elsewhere := !strings.HasPrefix(target, wire.SecretsDir+"/")
	if elsewhere {
		f.Path = boundDir + "/" + strconv.Itoa(number)
	}
	if err := writeFile(&f); err != nil {
		return err
	}
	if err := lockFile(f.Path, len(f.Content)); err != nil {
		return err
	}
	if !elsewhere {
		return nil
	}
	if !exists(target) {
		if err := writeFile(&wire.File{Path: target, Mode: wire.SecretMode}); err != nil {
			return err
		}
	}
	if err := unix.Mount(f.Path, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount over %s: %w", target, err)
	}
	const flags = unix.MS_REMOUNT | unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return errors.Join(unix.Mount("", target, "", flags, ""), unix.Unlink(f.Path))
}

// lockFile keeps a file's pages in memory for as long as the machine lives, whatever swap space its programs
// turn on.
func lockFile(path string, size int) error {
	if size == 0 {
		return nil
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err == nil {
		err = unix.Mlock(b)
	}
	if err != nil {
		return &os.PathError{Op: "lock", Path: path, Err: err}
	}
	return nil
}

// addKeys makes sure that root's authorized_keys has the keys, and that sshd trusts the file.
func addKeys(root string, keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	who, err := lookupUser(root, "root")
	if err != nil {
		who = account{home: "/root"}
	}
	dir := root + who.home + "/.ssh"
	path := dir + "/authorized_keys"
	var old []byte
	if exists(path) {
		if old, err = os.ReadFile(path); err != nil {
			return err
		}
	}
	text := mergeKeys(string(old), keys)
	if err := makeDir(dir); err != nil {
		return err
	}
	if err := unix.Chmod(dir, 0o700); err != nil {
		return &os.PathError{Op: "chmod", Path: dir, Err: err}
	}
	return writeFile(&wire.File{Path: path, Mode: 0o600, Content: []byte(text)})
}

// mergeKeys appends those keys that no line has.
func mergeKeys(old string, keys []string) string {
	have := map[string]bool{}
	for line := range strings.Lines(old) {
		have[strings.TrimSpace(line)] = true
	}
	if old != "" && !strings.HasSuffix(old, "\n") {
		old += "\n"
	}
	for _, k := range keys {
		if k = strings.TrimSpace(k); !have[k] {
			old += k + "\n"
			have[k] = true
		}
	}
	return old
}

// seedCloudInit leaves user data where cloud-init looks for it, and reports whether the image has that.
func seedCloudInit(root string, cfg *wire.BootConfig) (has bool, err error) {
	for _, path := range cloudInit {
		has = has || exists(root+path)
	}
	if !has || cfg.UserData == "" && cfg.MetaData == "" {
		return has, nil
	}
	meta := cfg.MetaData
	if meta == "" {
		meta = "instance-id: iid-" + cfg.Hostname + "\nlocal-hostname: " + cfg.Hostname + "\n"
	}
	return true, errors.Join(
		writeFile(&wire.File{Path: root + seedDir + "/meta-data", Mode: 0o600, Content: []byte(meta)}),
		writeFile(&wire.File{Path: root + seedDir + "/user-data", Mode: 0o600, Content: []byte(cfg.UserData)}),
		writeFile(&wire.File{Path: root + seedDir + "/network-config", Mode: 0o600, Content: []byte(seedNetwork)}))
}

// equip gives the root what the configuration says beyond its disks. It runs once, as process 1, before any
// program of the image does.
func equip(cfg *wire.BootConfig, con *console) error {
	if err := writeNames("", cfg); err != nil {
		return fmt.Errorf("name the machine: %w", err)
	}
	if err := placeSecrets(cfg.Secrets); err != nil {
		return err
	}
	for i := range cfg.Files {
		if err := writeFile(&cfg.Files[i]); err != nil {
			return fmt.Errorf("file: %w", err)
		}
	}
	if err := addKeys("", cfg.SSHKeys); err != nil {
		return fmt.Errorf("ssh keys: %w", err)
	}
	if cfg.UserData == "" && cfg.MetaData == "" {
		return nil
	}
	has, err := seedCloudInit("", cfg)
	if !has {
		con.say("the image has no cloud-init: user data is not used")
	}
	return err
}
