package replica

import "testing"

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
