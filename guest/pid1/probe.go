//go:build linux

package pid1

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/blixard/blixard/guest/wire"
)

// probeHeadBytes bounds what is read of a server's answer: its status line comes first, and headers only
// matter between an interim answer and the final one.
const probeHeadBytes = 16 << 10

// errNoHTTP is of an answer that is none.
var errNoHTTP = errors.New("the answer is no HTTP/1")

// checkProbe refuses a probe that can't be made.
func checkProbe(p *wire.Probe) error {
	bad := p.Path != "" && p.Path[0] != '/' || len(p.Path) > wire.MaxPath
	for i := range len(p.Path) {
		bad = bad || p.Path[i] <= ' ' || p.Path[i] >= 0x7f
	}
	if p.Port == 0 || bad {
		return &wire.Problem{Kind: wire.KindInvalid, Code: "guest.request", Message: "no port or path to probe"}
	}
	return nil
}

// probe asks a server of this machine how it is.
func probe(p *wire.Probe) wire.ProbeResult {
	limit := wire.ProbeLimit
	if p.TimeoutMS != 0 {
		limit = min(time.Duration(p.TimeoutMS)*time.Millisecond, wire.MaxProbe)
	}
	err := probeServer(p, time.Now().Add(limit))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("no answer within %s", limit)
	}
	if err != nil {
		return wire.ProbeResult{Message: wire.CleanText(fmt.Sprintf("port %d%s: %v", p.Port, p.Path, err), wire.MaxMessage)}
	}
	return wire.ProbeResult{OK: true}
}

func probeServer(p *wire.Probe, deadline time.Time) error {
	f, err := dialLocal(p.Port, deadline)
	if err != nil {
		return err
	}
	defer f.Close()
	if p.Path == "" {
		return nil
	}
	if err := f.SetDeadline(deadline); err != nil {
		return err
	}
	request := "GET " + p.Path + " HTTP/1.1\r\nHost: localhost:" + strconv.Itoa(int(p.Port)) +
		"\r\nUser-Agent: blixard\r\nAccept: */*\r\nConnection: close\r\n\r\n"
	if _, err := io.WriteString(f, request); err != nil {
		return err
	}
	status, err := readStatus(bufio.NewReader(io.LimitReader(f, probeHeadBytes)))
	if err != nil {
		return err
	}
	if status < 200 || status > 399 {
		return fmt.Errorf("the status is %d", status)
	}
	return nil
}

// readStatus reads the status of an HTTP answer, past interim ones.
func readStatus(r *bufio.Reader) (int, error) {
	for {
		line, err := readHeadLine(r)
		if err != nil {
			return 0, err
		}
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "HTTP/1.1" && f[0] != "HTTP/1.0" || len(f[1]) != 3 {
			return 0, errNoHTTP
		}
		status, err := strconv.ParseUint(f[1], 10, 10)
		if err != nil || status < 100 {
			return 0, errNoHTTP
		}
		if status >= 200 || status == 101 {
			return int(status), nil
		}
		for line != "" {
			if line, err = readHeadLine(r); err != nil {
				return 0, err
			}
		}
	}
}

func readHeadLine(r *bufio.Reader) (string, error) {
	line, err := r.ReadString('\n')
	if errors.Is(err, io.EOF) {
		return "", errNoHTTP
	}
	return strings.TrimRight(line, "\r\n"), err
}
