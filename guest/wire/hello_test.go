package wire

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"testing"

	"pgregory.net/rapid"
)

var testToken = Token{1, 2, 3, 0xFB, 0xFB, 0}

// scanAll feeds p in pieces of n and returns the session data and the hellos found, in order.
func scanAll(s *Scanner, p []byte, n int) (data []byte, hellos []Hello, breaks int) {
	for len(p) > 0 {
		part := p[:min(n, len(p))]
		p = p[len(part):]
		for len(part) > 0 {
			var found Found
			var d []byte
			found, d, part = s.Next(part)
			switch found {
			case FoundData:
				data = append(data, d...)
			case FoundHello:
				hellos = append(hellos, s.Hello())
				data = nil
			case FoundBreak:
				breaks++
			case FoundNothing:
				part = nil
			}
		}
	}
	return data, hellos, breaks
}

func TestScannerFindsSessionAfterAnyCut(t *testing.T) {
	payload := []byte{Escape, 'a', 0, 1, 2, Escape, Escape, 'z', '\n', Escape}
	first := Hello{Major: 1, Token: testToken, Nonce: Nonce{1}}
	second := Hello{Major: 1, Minor: 7, Token: testToken, Nonce: Nonce{2}}
	whole := AppendEscaped(first.Append(nil), payload)
	for cut := 0; cut <= len(whole); cut++ {
		for _, piece := range []int{1, 2, 3, 1000} {
			stream := append([]byte(nil), whole[:cut]...)
			stream = AppendEscaped(second.Append(stream), payload)
			data, hellos, _ := scanAll(NewScanner(testToken), stream, piece)
			if len(hellos) == 0 || hellos[len(hellos)-1] != second {
				t.Fatalf("cut at %d, pieces of %d: hellos %v", cut, piece, hellos)
			}
			if !bytes.Equal(data, payload) {
				t.Fatalf("cut at %d, pieces of %d: data %x, want %x", cut, piece, data, payload)
			}
		}
	}
}

// A session's data never contains a piece of a later host's marker.
func TestScannerNeverHandsOnMarkerBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		payload := rapid.SliceOf(rapid.SampledFrom([]byte{Escape, 0, 1, 2, 3, 'b', '\n'})).Draw(t, "payload")
		escaped := AppendEscaped(nil, payload)
		cut := rapid.IntRange(0, len(escaped)).Draw(t, "cut")
		piece := rapid.IntRange(1, 9).Draw(t, "piece")
		h := Hello{Major: 1, Token: testToken, Nonce: Nonce{9}}
		s := NewScanner(testToken)
		before, _, _ := scanAll(s, append(h.Append(nil), escaped[:cut]...), piece)
		if !bytes.HasPrefix(payload, before) {
			t.Fatalf("data %x is no begin of %x", before, payload)
		}
		after, hellos, breaks := scanAll(s, h.Append(nil), piece)
		if len(after) != 0 || len(hellos) != 1 || breaks != 1 {
			t.Fatalf("the marker gave data %x, %d hellos, %d breaks", after, len(hellos), breaks)
		}
	})
}

func TestScannerRefuses(t *testing.T) {
	other := testToken
	other[0]++
	good := Hello{Major: 1, Token: testToken}
	long := append([]byte{Escape, helloByte}, bytes.Repeat([]byte("x"), MaxHello+50)...)
	for name, stream := range map[string][]byte{
		"another token":    (Hello{Major: 1, Token: other}).Append(nil),
		"no token":         append([]byte{Escape, helloByte}, "blixard 1.0  \n"...),
		"too long":         append(long, '\n'),
		"no version":       bytes.Replace(good.Append(nil), []byte("1.0"), []byte("one"), 1),
		"short nonce":      bytes.Replace(good.Append(nil), []byte("00\n"), []byte("\n"), 1),
		"data first":       []byte("data without a session"),
		"unknown escape":   {Escape, 9, 'x'},
		"escaped, no sess": {Escape, 0, 'x', Escape, Escape, 0},
	} {
		data, hellos, _ := scanAll(NewScanner(testToken), append(stream, "after"...), 4)
		if len(data) != 0 || len(hellos) != 0 {
			t.Errorf("%s: data %q, hellos %v", name, data, hellos)
		}
	}
	s := NewScanner(testToken)
	scanAll(s, good.Append(nil), 1000)
	s.Refuse()
	if data, _, _ := scanAll(s, []byte("refused"), 3); len(data) != 0 {
		t.Errorf("after Refuse: data %q", data)
	}
}

func TestReadReplySkipsWhatIsStale(t *testing.T) {
	want := Reply{Major: 1, Minor: 2, Nonce: Nonce{5}, BootID: "boot"}
	stale := Reply{Major: 1, Nonce: Nonce{4}, BootID: "old"}
	for name, before := range map[string][]byte{
		"nothing":       nil,
		"data":          []byte("rubbish\n"),
		"escape":        {Escape},
		"begun":         {Escape, replyByte, 'b'},
		"older reply":   stale.Append(nil),
		"cut reply":     stale.Append(nil)[:20],
		"forged prefix": append([]byte{Escape, replyByte}, bytes.Repeat([]byte("y"), 2*MaxHello)...),
	} {
		r := bufio.NewReader(bytes.NewReader(append(want.Append(before), "rest"...)))
		got, err := ReadReply(r, want.Nonce)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if rest, _ := io.ReadAll(r); string(rest) != "rest" {
			t.Errorf("%s: left %q", name, rest)
		}
	}
	if _, err := ReadReply(bufio.NewReader(bytes.NewReader(stale.Append(nil))), want.Nonce); !errors.Is(err, io.EOF) {
		t.Errorf("only a stale reply: %v", err)
	}
	if _, err := ReadReply(bufio.NewReader(endless{}), want.Nonce); !errors.Is(err, ErrNoReply) {
		t.Errorf("endless data: %v", err)
	}
	for _, line := range []string{"", "x", "blixard-guest 1.0 00 b", "blixard-guest 1 " + string(bytes.Repeat([]byte("0"), 32)) + " b"} {
		if r, err := parseReply([]byte(line)); err == nil {
			t.Errorf("%q: %+v", line, r)
		}
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

func TestToken(t *testing.T) {
	got, err := TokenFromCmdline("quiet " + CmdlineKey + "=bad console=hvc0 " + testToken.KernelArg())
	if err != nil || got != testToken {
		t.Errorf("%v, %v", got, err)
	}
	for _, s := range []string{"", "12", testToken.String() + "0", "zz" + testToken.String()[2:], Token{}.String()} {
		if _, err := ParseToken(s); !errors.Is(err, ErrToken) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func FuzzScanner(f *testing.F) {
	f.Add(Hello{Major: 1, Token: testToken}.Append(nil), 3)
	f.Add([]byte{Escape, 1, Escape, 0, Escape}, 1)
	f.Fuzz(func(t *testing.T, b []byte, piece int) {
		piece = 1 + (piece&0x7fffffff)%64
		d1, h1, b1 := scanAll(NewScanner(testToken), b, piece)
		d2, h2, b2 := scanAll(NewScanner(testToken), b, len(b)+1)
		if !bytes.Equal(d1, d2) || len(h1) != len(h2) || b1 != b2 {
			t.Fatalf("pieces of %d: %x %d %d, whole %x %d %d", piece, d1, len(h1), b1, d2, len(h2), b2)
		}
	})
}

func FuzzReadReply(f *testing.F) {
	f.Add(Reply{Major: 1, Nonce: Nonce{5}, BootID: "b"}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ReadReply(bufio.NewReader(bytes.NewReader(b)), Nonce{5})
		if err == nil && (r.Nonce != Nonce{5} || len(r.BootID) > MaxIDLen) {
			t.Fatalf("%+v", r)
		}
	})
}
