package localpath

import (
	"os"
	"path/filepath"
)

// User is on whose behalf paths are chosen.
type User struct {
	// UID as the kernel has it; 0 uses the system's directories.
	UID int
	// Env looks up an environment variable, "" when it is not set.
	Env func(name string) string
}

// Current is the user of this process.
func Current() User { return User{UID: os.Geteuid(), Env: os.Getenv} }

const (
	systemDataDir  = "/var/lib/blixard"
	systemCacheDir = "/var/cache/blixard"
	systemRunDir   = "/run/blixard"
	systemConfig   = "/etc/blixard/blixard.toml"
	socketName     = "blixard.sock"
)

func (u User) home() string {
	if h := u.Env("HOME"); filepath.IsAbs(h) {
		return h
	}
	return "/nonexistent"
}

// xdg gives the directory an XDG variable names, or the fallback below home;
// the specification says that relative ones are ignored.
func (u User) xdg(variable, fallback string) string {
	if d := u.Env(variable); filepath.IsAbs(d) {
		return filepath.Join(d, "blixard")
	}
	return filepath.Join(u.home(), fallback, "blixard")
}

// DataDir holds the state of a node.
func (u User) DataDir() string {
	if u.UID == 0 {
		return systemDataDir
	}
	return u.xdg("XDG_DATA_HOME", ".local/share")
}

// CacheDir holds what can be fetched or built again.
func (u User) CacheDir() string {
	if u.UID == 0 {
		return systemCacheDir
	}
	return u.xdg("XDG_CACHE_HOME", ".cache")
}

// ConfigFile is read when it exists and no other was named.
func (u User) ConfigFile() string {
	if u.UID == 0 {
		return systemConfig
	}
	return filepath.Join(u.xdg("XDG_CONFIG_HOME", ".config"), "blixard.toml")
}

// Socket is where a daemon with that data directory listens.
func (u User) Socket(dataDir string) string {
	if u.UID == 0 {
		return filepath.Join(systemRunDir, socketName)
	}
	if d := u.Env("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
		return filepath.Join(d, "blixard", socketName)
	}
	return filepath.Join(dataDir, socketName)
}

// Sockets are the ones a client tries, in that order: the user's own node
// before the system's.
func (u User) Sockets() []string {
	own, system := u.Socket(u.DataDir()), filepath.Join(systemRunDir, socketName)
	if own == system {
		return []string{own}
	}
	return []string{own, system}
}

// AddressDir holds a link for each network address of a node on this host, by
// which the node's own users reach its socket instead.
func (u User) AddressDir() string {
	if u.UID == 0 {
		return filepath.Join(systemRunDir, "addresses")
	}
	if d := u.Env("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
		return filepath.Join(d, "blixard", "addresses")
	}
	return filepath.Join(u.DataDir(), "addresses")
}

// Credentials is the file of a person's credentials when no other is named.
func (u User) Credentials() string {
	if u.UID == 0 {
		return "/etc/blixard/credentials.pem"
	}
	return filepath.Join(u.xdg("XDG_CONFIG_HOME", ".config"), "credentials.pem")
}
