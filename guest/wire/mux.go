package wire

import (
	"io"
	"time"

	"github.com/hashicorp/yamux"
)

// How long either end lets a single write of a frame wait for the other end to take bytes. The host
// gives up early so that a caller's deadline holds; the guest is patient with a host that is paused.
const (
	hostWriteLimit  = 5 * time.Second
	guestWriteLimit = 60 * time.Second
	// streamCloseLimit bounds how long a stream that one end closed is kept for the other to
	// close too, and so what a guest that never closes can pin.
	streamCloseLimit = 5 * time.Second
)

type quiet struct{}

func (quiet) Print(...any)          {}
func (quiet) Printf(string, ...any) {}
func (quiet) Println(...any)        {}

// muxConfig: windows are yamux's smallest, 256 KiB a stream. Keepalives are the host's pings.
func muxConfig(writeLimit time.Duration) *yamux.Config {
	c := yamux.DefaultConfig()
	c.AcceptBacklog = MaxStreams
	c.EnableKeepAlive = false
	c.ConnectionWriteTimeout = writeLimit
	c.StreamOpenTimeout = 0
	c.StreamCloseTimeout = streamCloseLimit
	c.LogOutput = nil
	c.Logger = quiet{}
	return c
}

// HostMux starts the host's end. It owns conn from then on.
func HostMux(conn io.ReadWriteCloser) (*yamux.Session, error) {
	return yamux.Client(conn, muxConfig(hostWriteLimit))
}

// GuestMux starts the guest's end. It owns conn from then on.
func GuestMux(conn io.ReadWriteCloser) (*yamux.Session, error) {
	return yamux.Server(conn, muxConfig(guestWriteLimit))
}
