package boottime

import (
	"testing"
	"time"
)

func TestNowGoesForward(t *testing.T) {
	a := Now()
	b := Now()
	if a <= 0 || b < a {
		t.Fatalf("%d then %d", a, b)
	}
	if d := a.Add(time.Second).Sub(a); d != time.Second {
		t.Fatalf("Add and Sub disagree: %v", d)
	}
}
