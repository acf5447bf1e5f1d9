package invariant

import (
	"errors"
	"testing"
)

func TestThat(t *testing.T) {
	That(true, "fine")
	defer func() {
		err, ok := recover().(error)
		var broken *Broken
		if !ok || !errors.As(err, &broken) || err.Error() != "invariant broken: 1 is not 2: was it cut?" {
			t.Errorf("recovered %v", err)
		}
	}()
	That(1 == 2, "%d is not %d: was it cut?", 1, 2)
	t.Error("That returned")
}
