package client

import (
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/internal/localpath"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/unixsocket"
)

// EnvAddr is the variable that names the node when no address is given.
const EnvAddr = "BLIXARD_ADDR"

// EnvCredentials is the variable that names the credentials' file.
const EnvCredentials = "BLIXARD_CREDENTIALS"

// target is where a client connects: a socket, or an address by TLS.
type target struct {
	path    string
	address string
	trust   *auth.Trust
}

func (t target) String() string {
	if t.address != "" {
		return "https://" + t.address
	}
	return "unix:" + t.path
}

// resolve gives what addr stands for. An empty addr means the environment's, and
// without one the first of the local sockets that exists. A network address of a
// node of this host and user is its socket, unless credentials were named.
func resolve(addr, credentials string, user localpath.User) (target, error) {
	if addr == "" {
		addr = user.Env(EnvAddr)
	}
	if credentials == "" {
		credentials = user.Env(EnvCredentials)
	}
	if addr == "" {
		path, err := localSocket(user)
		return target{path: path}, err
	}
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		// Both unix:PATH and unix:///PATH are in use.
		if strings.HasPrefix(path, "///") {
			path = path[2:]
		}
		if path == "" {
			return target{}, badAddr(addr, "the path of the socket is missing")
		}
		path, err := filepath.Abs(path)
		return target{path: path}, err
	}
	if err := checkHTTPS(addr); err != nil {
		return target{}, err
	}
	_, hostPort, found := strings.Cut(addr, "://")
	if !found {
		hostPort = addr
	}
	hostPort = strings.TrimSuffix(hostPort, "/")
	if credentials == "" {
		if path, err := os.Readlink(filepath.Join(user.AddressDir(), hostPort)); err == nil {
			return target{path: path}, nil
		}
		credentials = user.Credentials()
		if _, err := os.Stat(credentials); err != nil {
			return target{}, problem.New(problem.Denied, "credentials.missing", "no node of this host has the address %s, and there are no credentials for others", hostPort).
				WithHint("name credentials with --credentials FILE or %s; `blixard cluster credentials` on a node makes them", EnvCredentials)
		}
	}
	trust, err := auth.LoadCredentials(credentials)
	return target{address: hostPort, trust: trust}, err
}

func checkHTTPS(addr string) error {
	host, scheme, found := strings.Cut(addr, "://")
	if !found {
		host, scheme = addr, "https"
	} else {
		host, scheme = scheme, host
	}
	if scheme != "https" {
		return badAddr(addr, "its scheme is "+strconv.Quote(scheme))
	}
	if strings.HasPrefix(addr, "/") || strings.HasPrefix(addr, ".") {
		return problem.New(problem.Invalid, "addr.invalid", "address %q looks like a path", addr).
			WithHint("name a socket as unix:%s", addr)
	}
	u, err := url.Parse("https://" + host)
	if err != nil || u.Hostname() == "" || u.Port() == "" || strings.Trim(u.Path, "/") != "" || u.User != nil {
		return badAddr(addr, "it has no HOST:PORT")
	}
	if port, err := strconv.ParseUint(u.Port(), 10, 16); err != nil || port == 0 {
		return badAddr(addr, "its port is not from 1 to 65535")
	}
	return nil
}

func badAddr(addr, reason string) error {
	return problem.New(problem.Invalid, "addr.invalid", "address %q: %s", addr, reason).
		WithHint("write unix:PATH or https://HOST:PORT")
}

// LocalSocket is the socket that Dial chooses when no address is given, the
// environment left aside.
func LocalSocket() string {
	s, _ := localSocket(localpath.Current())
	return s
}

// localSocket chooses among the local sockets: the first that is there, or the
// first of all, so that the error names it.
func localSocket(user localpath.User) (string, error) {
	sockets := user.Sockets()
	for _, s := range sockets {
		if st, err := os.Stat(s); err == nil && st.Mode()&fs.ModeSocket != 0 {
			return s, nil
		}
	}
	return sockets[0], nil
}

// dialTLS connects to a node of the cluster whose credentials are trusted.
func dialTLS(ctx context.Context, t target) (net.Conn, error) {
	c, err := (&tls.Dialer{Config: t.trust.ClientTLS("")}).DialContext(ctx, "tcp", t.address)
	switch {
	case err == nil:
		return c, nil
	case ctx.Err() != nil:
		return nil, problem.From(err)
	}
	var p *problem.Error
	if errors.As(err, &p) {
		return nil, p
	}
	return nil, problem.New(problem.Unavailable, "node.not_running", "no blixard node answers at %s", t.address).WithCause(err).
		WithHint("is the address right, and its port open? Any other node of the cluster will do as well")
}

// dialSocket connects and turns what can go wrong into problems.
func dialSocket(ctx context.Context, path string) (net.Conn, error) {
	c, err := unixsocket.Dial(ctx, path)
	switch {
	case err == nil:
		return c, nil
	case unixsocket.Absent(err):
		return nil, problem.New(problem.Unavailable, "node.not_running", "no blixard node listens at %s", path).
			WithHint("start one with `blixard node start --detach`, or name another with --addr or %s", EnvAddr)
	case errors.Is(err, fs.ErrPermission):
		return nil, problem.New(problem.Denied, "auth.socket", "you may not open the socket %s", path).
			WithHint("run the command as root, or have yourself added to the group blixard and log in again")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return nil, problem.From(err)
	}
	return nil, problem.From(err)
}
