//go:build linux

package boottest

import (
	"encoding/json"
	"net"
	"time"
)

// Monitor has QEMU carry out a command of its QMP monitor, such as "stop", with its arguments or nil.
func (m *Machine) Monitor(command string, arguments map[string]any) {
	m.t.Helper()
	conn, err := net.DialTimeout("unix", m.qmp, Patience)
	if err != nil {
		m.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(Patience)); err != nil {
		m.t.Fatal(err)
	}
	in, out := json.NewDecoder(conn), json.NewEncoder(conn)
	var greeting map[string]any
	if err := in.Decode(&greeting); err != nil {
		m.t.Fatal(err)
	}
	for _, request := range []map[string]any{{"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}} {
		if request["arguments"] == nil || arguments == nil {
			delete(request, "arguments")
		}
		if err := out.Encode(request); err != nil {
			m.t.Fatal(err)
		}
		for {
			var answer map[string]any
			if err := in.Decode(&answer); err != nil {
				m.t.Fatal(err)
			}
			if refused, ok := answer["error"]; ok {
				m.t.Fatalf("%s: %v", command, refused)
			}
			if _, ok := answer["return"]; ok { // others are events
				break
			}
		}
	}
}
