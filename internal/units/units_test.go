package units

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/blixard/blixard/internal/problem"
)

func TestParseSize(t *testing.T) {
	for text, want := range map[string]Size{
		"0": 0, "0.0": 0, "0B": 0, "1B": 1, "512MiB": 512 * MiB, "512M": 512 * MiB, "512m": 512 * MiB, "512 MiB": 512 * MiB,
		" 1.5GiB ": 1536 * MiB, "1.5g": 1536 * MiB, ".5k": 512, "2GB": 2_000_000_000, "1kb": 1000, "1KiB": KiB,
		"7 bytes": 7, "15EiB": 15 * EiB, "18446744073709551615B": math.MaxUint64, "1.25Ti": 1280 * GiB, "3PiB": 3 * PiB, "1.50MiB": 1536 * KiB,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for text, message := range map[string]string{
		"":                          "not a number",
		"MiB":                       "not a number",
		"-1MiB":                     "not a number",
		"1.MiB":                     "not a number",
		"1,5GiB":                    `unit ",5GiB" is not known`,
		"512":                       "has no unit",
		"5 parsecs":                 `unit "parsecs" is not known`,
		"1e3B":                      `unit "e3B" is not known`,
		"0.3B":                      "come out even",
		"16EiB":                     "too large",
		"15.99999999999999999999E":  "too many digits",
		"99999999999999999999B":     "too large",
		"18446744073709551615.5KiB": "too large",
		strings.Repeat("1", 100):    "not a number",
		"٣MiB":                      "not a number",
	} {
		_, err := ParseSize(text)
		if !problem.HasCode(err, "size.invalid") || !strings.Contains(err.Error(), message) || problem.From(err).Hint == "" {
			t.Errorf("ParseSize(%q): %v; want %q", text, err, message)
		}
	}
}

func TestSizeText(t *testing.T) {
	for size, want := range map[Size][2]string{
		0: {"0B", "0B"}, 1: {"1B", "1B"}, 1023: {"1023B", "1023B"}, KiB: {"1KiB", "1KiB"}, 1536 * MiB: {"1536MiB", "1.5GiB"},
		MiB + 1: {"1048577B", "1.0MiB"}, 250*GiB + MiB: {"256001MiB", "250GiB"}, math.MaxUint64: {"18446744073709551615B", "16.0EiB"},
	} {
		if size.String() != want[0] || size.Human() != want[1] {
			t.Errorf("%d: %s, %s; want %v", uint64(size), size.String(), size.Human(), want)
		}
	}
	for size, want := range map[Size]uint64{0: 0, 1: 1, MiB: 1, MiB + 1: 2, 512_000_000: 489} {
		if got := size.CeilMiB(); got != want {
			t.Errorf("%s: %d MiB, want %d", size, got, want)
		}
	}
	s := 3 * MiB
	if err := s.Set("x"); err == nil || s != 3*MiB || s.Type() != "size" {
		t.Errorf("a refused text changed the size to %s: %v", s, err)
	}
}

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "10s": 10 * time.Second, "1h30m": 90 * time.Minute, "1.5h": 90 * time.Minute, "500ms": 500 * time.Millisecond,
		"2 days": 48 * time.Hour, "1 min 30 s": 90 * time.Second, " 5MIN ": 5 * time.Minute, "1w": 168 * time.Hour, "3µs": 3000, ".5s": 500 * time.Millisecond,
		"9223372036854775807ns": math.MaxInt64,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for text, message := range map[string]string{
		"": "empty", "  ": "empty", "-1s": "negative", "10": "no unit", "1h30": "no unit", "s": "not a number", "1.2.3s": "not a number",
		"1 2s": "not a number", "5 fortnights": "not known", "1.0000000001s": "come out even", "300y": "not known", "9223372036854775808ns": "too large",
		"9223372036854775807ns1ns": "too large", "100000000w": "too large", strings.Repeat("1s", 50): "too long", "1s.": "no unit", "++1s": "not a number",
	} {
		_, err := ParseDuration(text)
		if !problem.HasCode(err, "duration.invalid") || !strings.Contains(err.Error(), message) || problem.From(err).Hint == "" {
			t.Errorf("ParseDuration(%q): %v; want %q", text, err, message)
		}
	}
}

func TestDurationText(t *testing.T) {
	for d, want := range map[time.Duration][2]string{
		0: {"0s", "0ms"}, time.Minute: {"1m", "1m"}, time.Hour: {"1h", "1h"}, 90 * time.Second: {"1m30s", "1m30s"},
		time.Hour + time.Second: {"1h0m1s", "1h"}, 340 * time.Millisecond: {"340ms", "340ms"}, 12 * time.Second: {"12s", "12s"},
		76 * time.Hour: {"76h", "3d4h"}, 30 * time.Second: {"30s", "30s"}, -time.Second: {"-1s", "0s"},
	} {
		if FormatDuration(d) != want[0] || HumanDuration(d) != want[1] {
			t.Errorf("%v: %s, %s; want %v", d, FormatDuration(d), HumanDuration(d), want)
		}
	}
}

func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := Size(rapid.Uint64().Draw(t, "size"))
		if got, err := ParseSize(size.String()); err != nil || got != size {
			t.Fatalf("%d -> %s -> %d, %v", uint64(size), size, got, err)
		}
		d := time.Duration(rapid.Int64Min(0).Draw(t, "duration"))
		if got, err := ParseDuration(FormatDuration(d)); err != nil || got != d {
			t.Fatalf("%d -> %s -> %d, %v", d, FormatDuration(d), got, err)
		}
	})
}

func FuzzParseSize(f *testing.F) {
	for _, s := range []string{"512MiB", "1.5GiB", "0", "99999999999999999999E", "1.MiB", ".5k"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		size, err := ParseSize(text)
		if err != nil {
			if !problem.HasCode(err, "size.invalid") || len(err.Error()) > 1000 {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if again, err := ParseSize(size.String()); err != nil || again != size {
			t.Fatalf("%q -> %s -> %s, %v", text, size, again, err)
		}
	})
}

func FuzzParseDuration(f *testing.F) {
	for _, s := range []string{"10s", "1h30m", "2 days", "9223372036854775807ns1ns", "1.5.h", "µs"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := ParseDuration(text)
		if err != nil {
			if !problem.HasCode(err, "duration.invalid") || len(err.Error()) > 1000 {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		if again, err := ParseDuration(FormatDuration(d)); err != nil || again != d || d < 0 {
			t.Fatalf("%q -> %s -> %s, %v", text, d, again, err)
		}
	})
}
