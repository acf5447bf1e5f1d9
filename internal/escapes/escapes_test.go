package escapes

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestStrip(t *testing.T) {
	for in, want := range map[string]string{
		"plain\ttext\n":                           "plain\ttext\n",
		"a\x1b[31mred\x1b[0m b":                   "ared b",
		"a\x1b[38;2;1;2;3;4mb":                    "ab",
		"\x1b]0;title\x07x":                       "x",
		"\x1b]8;;http://x\x1b\\link":              "link",
		"\x1b]52;c;ZXZpbA==\u009cx":               "x",
		"\x1bPdcs\x1b\\x\x1bc\x1b(Bz":             "xz",
		"a\r\nb\rc\r":                             "a\nb\nc",
		"bell\x07back\x08\x7f":                    "bellback",
		"\u009b31mx \u009d0;t\x07y":               "x y",
		"grüße 世界":                                "grüße 世界",
		"bad\xff\xc3(":                            "bad??(",
		"\x1b\x1b[mx\x1b[\x1b[31my":               "xy",
		"\x1b]never " + strings.Repeat("z", 5000): strings.Repeat("z", 5000+6-4097),
		"\x1b]can\x18x\x1b[3\nx":                  "xx",
	} {
		var s Stripper
		if got := string(s.Strip([]byte(in))); got != want {
			t.Errorf("%.40q gives %.80q, want %.80q", in, got, want)
		}
		var one Stripper
		var out []byte
		for _, b := range []byte(in) {
			out = append(out, one.Strip([]byte{b})...)
		}
		if string(out) != want {
			t.Errorf("%.40q byte by byte gives %.80q, want %.80q", in, out, want)
		}
	}
}

func FuzzStrip(f *testing.F) {
	for _, s := range []string{"a\x1b[31mb", "\x1b]0;t\x07", "\r\r\n", "\xe4\xb8", "\u009b1m", "\x1bP"} {
		f.Add([]byte(s), 1)
	}
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		var whole, parts Stripper
		want := whole.Strip(bytes.Clone(data))
		cut = max(0, min(cut, len(data)))
		got := append(parts.Strip(bytes.Clone(data[:cut])), parts.Strip(bytes.Clone(data[cut:]))...)
		if !bytes.Equal(got, want) {
			t.Fatalf("%q cut at %d: %q, else %q", data, cut, got, want)
		}
		for _, r := range string(want) {
			if r < 0x20 && r != '\n' && r != '\t' || r == 0x7f || r >= 0x80 && r < 0xa0 {
				t.Fatalf("%q lets %q through: %q", data, r, want)
			}
		}
		if !utf8.Valid(want) {
			t.Fatalf("%q gives %q", data, want)
		}
	})
}
