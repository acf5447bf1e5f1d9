package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/blixard/blixard/driver"
	"github.com/blixard/blixard/internal/problem"
)

const greeting = `{"QMP": {"version": {}, "capabilities": []}}` + "\n"

// hostile sends something to whoever connects, and takes what it says.
func hostile(t testing.TB, script []byte) (*qmpConn, *[]qmpEvent) {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{}, 2)
	go func() {
		_, _ = io.Copy(io.Discard, theirs)
		done <- struct{}{}
	}()
	go func() {
		_, _ = theirs.Write(script)
		_ = theirs.Close()
		done <- struct{}{}
	}()
	var events []qmpEvent
	q := newQMP(ours, func(e qmpEvent) { events = append(events, e) })
	t.Cleanup(func() {
		_ = q.close()
		<-done
		<-done
	})
	return q, &events
}

func TestQMPRefusesWhatIsNotQMP(t *testing.T) {
	for name, script := range map[string]string{
		"nothing":           "",
		"no greeting":       `{"return": {}}` + "\n",
		"not JSON":          "hello\n",
		"half a line":       `{"QMP": {}`,
		"deep":              strings.Repeat("[", 100) + "\n",
		"long line":         strings.Repeat("x", qmpLineBytesMax+1) + "\n",
		"endless line":      strings.Repeat(" ", 2*qmpLineBytesMax),
		"refuses":           greeting + `{"id": 0, "error": {"class": "GenericError", "desc": "no"}}` + "\n",
		"no answer":         greeting + `{}` + "\n",
		"ends after greet":  greeting,
		"events, then ends": greeting + strings.Repeat(`{"event": "STOP"}`+"\n", 1000),
	} {
		t.Run(name, func(t *testing.T) {
			q, _ := hostile(t, []byte(script))
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := q.handshake(ctx); err == nil {
				t.Error("it was taken for QMP")
			} else if ctx.Err() != nil {
				t.Error("it was waited for")
			}
		})
	}
}

// TestQMPCalls: each answer finds its call, errors come as problems, and a
// connection that ends ends all calls.
func TestQMPCalls(t *testing.T) {
	ours, theirs := net.Pipe()
	served := make(chan error, 1)
	go func() {
		served <- func() error {
			defer theirs.Close()
			dec := json.NewDecoder(theirs)
			if _, err := io.WriteString(theirs, greeting); err != nil {
				return err
			}
			for {
				var c struct {
					Execute   string
					Arguments map[string]any
					ID        uint64
				}
				if err := dec.Decode(&c); err != nil {
					return err
				}
				answer := map[string]string{
					"qmp_capabilities": `{"event": "RESUME"}` + "\n" + `{"return": {}, "id": 0}`,
					"good":             fmt.Sprintf(`{"return": {"n": %v}, "id": 999}`+"\n"+`{"return": {"n": %v}, "id": %d}`, 1, c.Arguments["n"], c.ID),
					"refused":          fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "%s"}, "id": %d}`, strings.Repeat("é", 1000), c.ID),
					"empty":            fmt.Sprintf(`{"id": %d}`, c.ID),
					"other type":       fmt.Sprintf(`{"return": [], "id": %d}`, c.ID),
					"bad id":           `{"return": {}, "id": "x"}`,
				}[c.Execute]
				if answer == "" {
					continue // hung
				}
				if _, err := io.WriteString(theirs, answer+"\n"); err != nil {
					return err
				}
			}
		}()
	}()
	var seen []driver.EventKind
	q := newQMP(ours, func(e qmpEvent) {
		if ev, ok := translate(e); ok {
			seen = append(seen, ev.Kind)
		}
	})
	if err := q.handshake(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 1 || seen[0] != driver.EventResumed {
		t.Errorf("events %v", seen)
	}
	read := make(chan error, 1)
	go func() { read <- q.read() }()
	var out struct{ N int }
	if err := q.call(t.Context(), "good", map[string]int{"n": 7}, &out); err != nil || out.N != 7 {
		t.Errorf("%v, %v", out, err)
	}
	for name, want := range map[string]string{"refused": "driver.qmp", "empty": "driver.qmp", "other type": "driver.qmp"} {
		if err := q.call(t.Context(), name, nil, &out); !problem.HasCode(err, want) || len(err.Error()) > 4*qmpErrorTextMax {
			t.Errorf("%s: %v", name, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := q.call(ctx, "hangs", nil, nil); !problem.HasCode(err, "driver.vmm_hung") {
		t.Errorf("%v", err)
	}
	if err := q.call(t.Context(), "bad id", nil, nil); !problem.HasCode(err, "driver.qmp_lost") {
		t.Errorf("%v", err)
	}
	if err := <-read; !errors.Is(err, errQMPProtocol) {
		t.Errorf("%v", err)
	}
	if err := q.close(); err != nil {
		t.Error(err)
	}
	if err := q.call(t.Context(), "late", nil, nil); !problem.HasCode(err, "driver.qmp_lost") {
		t.Errorf("%v", err)
	}
	if err := <-served; err == nil {
		t.Error("the server ended without a reason")
	}
}

func TestStatisticsOfAGuest(t *testing.T) {
	parse := func(s string) []blockStats {
		var all []blockStats
		if err := json.Unmarshal([]byte(s), &all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	got, err := statistics(parse(`[{"node-name":"disk1","stats":{"rd_bytes":1}},{"node-name":"disk0","stats":{"rd_bytes":5,"wr_bytes":6,` +
		`"rd_operations":7,"wr_operations":8,"flush_operations":9}}]`))
	want := driver.DriveStatistics{ReadBytes: 5, WrittenBytes: 6, Reads: 7, Writes: 8, Flushes: 9}
	if err != nil || len(got.Drives) != 2 || got.Drives[0] != want || got.Drives[1].ReadBytes != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := statistics(parse(`[{"node-name":"disk0"},{"node-name":"disk0"}]`)); err == nil {
		t.Error("two disks of one name")
	}
}

func TestEventsAreTranslated(t *testing.T) {
	for _, tc := range []struct {
		name, data string
		want       driver.Event
		known      bool
	}{
		{"SHUTDOWN", `{"guest": true}`, driver.Event{Kind: driver.EventShutdown, Guest: true}, true},
		{"SHUTDOWN", `{"guest": "x"}`, driver.Event{Kind: driver.EventShutdown}, true},
		{"GUEST_PANICKED", ``, driver.Event{Kind: driver.EventPanicked, Guest: true}, true},
		{"RESET", `[]`, driver.Event{Kind: driver.EventReset}, true},
		{"VNC_CONNECTED", ``, driver.Event{}, false},
	} {
		if got, known := translate(qmpEvent{name: tc.name, data: json.RawMessage(tc.data)}); got != tc.want || known != tc.known {
			t.Errorf("%s %s: %+v, %v", tc.name, tc.data, got, known)
		}
	}
}

// FuzzQMP lets a VMM that its guest has taken over say anything: nothing of it
// breaks the driver, and no message is larger or deeper than it may be.
func FuzzQMP(f *testing.F) {
	for _, s := range []string{
		"", greeting, greeting + `{"return": {}, "id": 0}` + "\n" + `{"event": "SHUTDOWN", "data": {"guest": true}, "timestamp": {"seconds": 1e9, "microseconds": -1}}` + "\n",
		greeting + `{"return": {}}` + "\n" + `{"return": [{"node-name": "disk0", "stats": {"rd_bytes": -1}}], "id": 1}` + "\n",
		greeting + `{"error": {"class": "x", "desc": "y"}, "id": 0}` + "\n", greeting + "\n\r\n \n" + `{"id": 18446744073709551616}`,
		`{"QMP": null}` + "\n", `{"QMP": {"a": "\"[[[["}}` + "\n", "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		q, events := hostile(t, script)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if err := q.handshake(ctx); err != nil {
			if ctx.Err() != nil {
				t.Fatal("it is waited for")
			}
			return
		}
		read := make(chan error, 1)
		go func() { read <- q.read() }()
		var stats []blockStats
		if err := q.call(ctx, "query-blockstats", nil, &stats); err == nil {
			if _, err := statistics(stats); err != nil && !problem.HasCode(err, "driver.qmp") {
				t.Fatal(err)
			}
		} else if p := problem.From(err); len(p.Message) > 2<<10 {
			t.Fatalf("an error of %d bytes", len(p.Message))
		}
		if err := <-read; err == nil || ctx.Err() != nil {
			t.Fatalf("read ended with %v", err)
		}
		for _, e := range *events {
			translate(e)
		}
		for line := range bytes.Lines(script) {
			if m, err := parseQMP(line); err == nil && m.Error != nil && len(m.Error.Error()) > 2<<10 {
				t.Fatalf("an error of %d bytes", len(m.Error.Error()))
			}
		}
	})
}
