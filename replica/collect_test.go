package replica

import (
	"math"
	"runtime/debug"
	"testing"
)

func TestGarbageFitsWhatIsKept(t *testing.T) {
	for _, tc := range []struct {
		kept uint64
		want int
	}{{0, 100}, {1 << 20, 100}, {512 << 20, 100}, {1 << 30, 50}, {2 << 30, 25}, {1 << 40, 25}} {
		if got := gcPercent(tc.kept); got != tc.want {
			t.Errorf("with %d bytes kept %d %%, want %d", tc.kept, got, tc.want)
		}
	}
}

// TestMemoryHasALimit: what fits keeps the limit, and a larger state the share that it needs.
func TestMemoryHasALimit(t *testing.T) {
	for _, tc := range []struct {
		kept uint64
		want int64
	}{
		{0, 3900 << 20},
		{2581 << 20, 3900 << 20},
		{2925 << 20, 3900 << 20},
		{2926 << 20, 4096 << 20},
		{3072 << 20, 4096 << 20},
		{6 << 30, 8 << 30},
	} {
		if got := memoryLimit(tc.kept); got != tc.want {
			t.Errorf("with %d MiB kept %d MiB, want %d", tc.kept>>20, got>>20, tc.want>>20)
		}
	}
	before := debug.SetMemoryLimit(math.MaxInt64)
	defer debug.SetMemoryLimit(before)
	t.Setenv("GOMEMLIMIT", "")
	mustOpen(t, testConfig(t.TempDir()))
	if got := debug.SetMemoryLimit(-1); got != memoryMax {
		t.Errorf("an open replica has a limit of %d bytes", got)
	}
	debug.SetMemoryLimit(math.MaxInt64)
	t.Setenv("GOMEMLIMIT", "1TiB")
	if collectFitting(); debug.SetMemoryLimit(-1) != math.MaxInt64 {
		t.Error("who sets a limit does not decide")
	}
}
