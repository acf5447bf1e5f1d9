package nearest

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestOf(t *testing.T) {
	words := []string{"data_dir", "socket", "lease.ttl", "log.level", "", strings.Repeat("x", 200)}
	for word, want := range map[string]string{
		"data_dri": "data_dir", "datadir": "data_dir", "sokcet": "socket", "lease.tll": "lease.ttl", "loglevel": "log.level",
		"zzz": "", "": "", "socket": "socket", strings.Repeat("x", 199): "",
	} {
		if got := Of(word, words); got != want {
			t.Errorf("Of(%q) = %q, want %q", word, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`[ab]{0,8}`)
		a, b := word.Draw(t, "a"), word.Draw(t, "b")
		d := distance(a, b)
		if d != distance(b, a) || (d == 0) != (a == b) || d > max(len(a), len(b)) || d < max(len(a), len(b))-min(len(a), len(b)) {
			t.Fatalf("distance(%q, %q) = %d", a, b, d)
		}
	})
}
