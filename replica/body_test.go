package replica

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/state"
)

// filled gives a state of some VMs.
func filled() *state.State {
	s := state.New(state.DefaultLimits())
	for i := range 100 {
		s.Apply([]state.Entry{{Index: uint64(i + 1), Command: create(fmt.Sprint("vm-", i))}})
	}
	return s
}

func body(t *testing.T, s *state.State) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := writeState(&b, s.View())
	if err != nil || n <= int64(b.Len()) {
		t.Fatalf("%d bytes of %d: %v", b.Len(), n, err)
	}
	return b.Bytes()
}

func TestBodyGivesTheState(t *testing.T) {
	s := filled()
	compressed := body(t, s)
	if !bytes.Equal(compressed, body(t, s)) {
		t.Error("the same state gives other bytes")
	}
	var plain bytes.Buffer
	if err := s.View().WriteSnapshot(&plain); err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"compressed": compressed, "of an earlier version": plain.Bytes()} {
		got := state.New(state.DefaultLimits())
		if err := readState(bytes.NewReader(b), got); err != nil || got.View().Hash() != s.View().Hash() {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDamagedBodyChangesNothing(t *testing.T) {
	whole := body(t, filled())
	for n := 0; n < len(whole); n += 7 {
		flipped := bytes.Clone(whole)
		flipped[n] ^= 0x10
		for name, b := range map[string][]byte{"cut": whole[:n], "flipped": flipped} {
			got := filled()
			before := got.View().Hash()
			if err := readState(bytes.NewReader(b), got); err == nil && got.View().Hash() != before || err != nil && !problem.HasCode(err, "snapshot.damaged") {
				t.Errorf("%s at %d: %v", name, n, err)
			}
			if got.View().Hash() != before {
				t.Fatalf("%s at %d changed the state", name, n)
			}
		}
	}
}
