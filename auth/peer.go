package auth

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/blixard/blixard/internal/problem"
)

// groupsMax is the kernel's own limit of a process's groups (NGROUPS_MAX).
const groupsMax = 65536

// groupsUsual is enough for most processes; more takes a second call.
const groupsUsual = 64

// Caller is the process at the other end of a unix socket, as it was when it
// connected. It is not changed after it was made.
type Caller struct {
	UID, GID uint32
	// PID is 0 when the caller is in a PID namespace that can't be seen.
	PID int32
	// Groups are the supplementary ones.
	Groups []uint32
}

// Actor names the caller in events: "user:UID".
func (c Caller) Actor() string { return "user:" + strconv.FormatUint(uint64(c.UID), 10) }

// In reports whether the caller is in a group, primary or supplementary.
func (c Caller) In(gid uint32) bool { return c.GID == gid || slices.Contains(c.Groups, gid) }

// errNotUnix is returned for connections that carry no peer credentials.
var errNotUnix = errors.New("the connection is not a unix socket's")

// CallerOf asks the kernel who is at the other end of conn.
func CallerOf(conn net.Conn) (Caller, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return Caller{}, errNotUnix
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return Caller{}, fmt.Errorf("auth: peer credentials: %w", err)
	}
	var caller Caller
	var inner error
	if err := raw.Control(func(fd uintptr) { caller, inner = callerOfFD(int(fd)) }); err != nil {
		return Caller{}, fmt.Errorf("auth: peer credentials: %w", err)
	}
	if inner != nil {
		return Caller{}, fmt.Errorf("auth: peer credentials: %w", inner)
	}
	return caller, nil
}

func callerOfFD(fd int) (Caller, error) {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return Caller{}, err
	}
	if domain != unix.AF_UNIX {
		return Caller{}, errNotUnix
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Caller{}, err
	}
	groups, err := peerGroups(fd)
	if err != nil {
		return Caller{}, err
	}
	return Caller{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid, Groups: groups}, nil
}

// peerGroups reads SO_PEERGROUPS, for which x/sys has no function.
func peerGroups(fd int) ([]uint32, error) {
	size := uint32(groupsUsual)
	for size <= groupsMax {
		groups := make([]uint32, size)
		bytes := size * uint32(unsafe.Sizeof(groups[0]))
		// SAFETY: the kernel writes at most bytes into groups, which lives until
		// the call is over since both pointers are made in its arguments.
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&bytes)), 0)
		n := bytes / uint32(unsafe.Sizeof(groups[0]))
		switch errno {
		case 0:
			return groups[:n], nil
		case unix.ERANGE:
			// bytes is now what is needed.
			if n <= size {
				return nil, errno
			}
			size = n
		case unix.ENODATA:
			// A socket that was not connected by a process has no groups.
			return nil, nil
		default:
			return nil, errno
		}
	}
	return nil, unix.ERANGE
}

// Conn is a connection whose caller is known.
type Conn struct {
	net.Conn
	Caller Caller
}

// Info is what gRPC carries as a connection's identity.
type Info struct {
	credentials.CommonAuthInfo
	Caller Caller
}

// AuthType names the way the caller was found.
func (Info) AuthType() string { return "unix-peer" }

// known finds the caller of a connection that Listener accepted, below what was
// wrapped around it.
func known(conn net.Conn) (Caller, bool) {
	for conn != nil {
		if c, ok := conn.(*Conn); ok {
			return c.Caller, true
		}
		w, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = w.NetConn()
	}
	return Caller{}, false
}

// Listener notes the caller of every connection that l accepts. A connection
// whose caller the kernel won't tell is closed and the next one is waited for.
func Listener(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		caller, err := CallerOf(conn)
		if err == nil {
			return &Conn{Conn: conn, Caller: caller}, nil
		}
		_ = conn.Close()
	}
}

// Credentials hands the callers of unix sockets to gRPC, and, where Network is
// set, does the handshake of all other connections by it. It adds nothing to what
// is sent over a unix socket, so clients there use insecure credentials.
type Credentials struct {
	// Network is for connections that are not unix sockets; nil refuses them.
	Network credentials.TransportCredentials
}

var _ credentials.TransportCredentials = Credentials{}

// ServerHandshake finds the caller.
func (c Credentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	caller, ok := known(conn)
	if !ok {
		if _, unix := conn.(*net.UnixConn); !unix && c.Network != nil {
			return c.Network.ServerHandshake(conn)
		}
		var err error
		if caller, err = CallerOf(conn); err != nil {
			return nil, nil, err
		}
	}
	return conn, Info{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, Caller: caller}, nil
}

// ClientHandshake is refused: these credentials are the server's.
func (Credentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("auth: peer credentials are for servers")
}

// Info describes the protocol.
func (Credentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix-peer"}
}

// Clone gives the credentials themselves: they hold nothing that changes.
func (c Credentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName does nothing: there is no name.
func (Credentials) OverrideServerName(string) error { return nil }

type callerKey struct{}

// ConnContext is http.Server.ConnContext for connections of Listener.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	caller, ok := known(conn)
	if !ok {
		var err error
		if caller, err = CallerOf(conn); err != nil {
			return ctx
		}
	}
	return WithCaller(ctx, caller)
}

// WithCaller gives a context in which FromContext finds caller.
func WithCaller(ctx context.Context, caller Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, caller)
}

// FromContext finds who calls, over gRPC or HTTP. Without a caller it is a
// problem of kind Denied and code auth.unknown_caller: nobody is anonymous.
func FromContext(ctx context.Context) (Caller, error) {
	if c, ok := ctx.Value(callerKey{}).(Caller); ok {
		return c, nil
	}
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(Info); ok {
			return info.Caller, nil
		}
	}
	return Caller{}, problem.New(problem.Denied, "auth.unknown_caller", "the kernel does not say who calls").
		WithHint("connect to the node's unix socket")
}
