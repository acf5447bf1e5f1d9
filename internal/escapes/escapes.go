package escapes

import "unicode/utf8"

// The states of the stripper, after ECMA-48 and what terminals make of it.
const (
	ground = iota
	// escape: after ESC.
	escape
	// intermediate: after ESC and a byte from 0x20 to 0x2f; the next final byte
	// ends it.
	intermediate
	// control: in a control sequence (CSI), up to a byte from 0x40 to 0x7e.
	control
	// str: in an operating system command or another string, up to BEL or ST.
	str
	// strEscape: after ESC in a string.
	strEscape
)

// stringBytesMax ends a string that never ends: a guest could otherwise hide all
// that follows.
const stringBytesMax = 4096

// Stripper takes control sequences out of a stream. The zero value is ready. It
// is not safe for concurrent use.
type Stripper struct {
	state  int
	length int
	// lastCR: a carriage return waits to see whether a line feed follows.
	lastCR bool
	// part is the beginning of a character whose rest has not come yet.
	part []byte
}

// Strip returns what of p may be shown: text, tabs and line feeds. A carriage
// return without a line feed becomes one, so that a line can't be written over.
// The result is valid until the next call's p is changed.
func (s *Stripper) Strip(p []byte) []byte {
	out := make([]byte, 0, len(p))
	if len(s.part) > 0 {
		p = append(s.part, p...)
		s.part = nil
	}
	for len(p) > 0 {
		if p[0] >= utf8.RuneSelf && !utf8.FullRune(p) {
			s.part = append([]byte(nil), p...)
			return out
		}
		r, size := utf8.DecodeRune(p)
		out = s.step(out, r, p[:size])
		p = p[size:]
	}
	return out
}

// step takes one character, raw as it came.
func (s *Stripper) step(out []byte, r rune, raw []byte) []byte {
	switch s.state {
	case escape:
		return s.afterEscape(out, r)
	case intermediate:
		if r >= 0x30 && r <= 0x7e || r < 0x20 {
			s.state = ground
		}
		return out
	case control:
		if r >= 0x40 && r <= 0x7e || r < 0x20 && r != 0x1b {
			s.state = ground
		} else if r == 0x1b {
			s.state = escape
		}
		return out
	case str, strEscape:
		s.inString(r)
		return out
	}
	return s.text(out, r, raw)
}

func (s *Stripper) afterEscape(out []byte, r rune) []byte {
	switch {
	case r == '[':
		s.state = control
	case r == ']' || r == 'P' || r == 'X' || r == '^' || r == '_':
		s.state, s.length = str, 0
	case r >= 0x20 && r <= 0x2f:
		s.state = intermediate
	case r == 0x1b:
	default:
		s.state = ground
	}
	return out
}

func (s *Stripper) inString(r rune) {
	s.length++
	switch {
	case r == 0x07 || r == 0x9c || s.state == strEscape && r == '\\' || s.length > stringBytesMax || r == 0x18 || r == 0x1a:
		s.state = ground
	case r == 0x1b:
		s.state = strEscape
	default:
		s.state = str
	}
}

func (s *Stripper) text(out []byte, r rune, raw []byte) []byte {
	if s.lastCR {
		s.lastCR = false
		if r != '\n' {
			out = append(out, '\n')
		}
	}
	switch {
	case r == 0x1b:
		s.state = escape
	case r == 0x9b:
		s.state = control
	case r == 0x9d || r == 0x90 || r == 0x98 || r == 0x9e || r == 0x9f:
		s.state, s.length = str, 0
	case r == '\r':
		s.lastCR = true
	case r == '\n' || r == '\t':
		out = append(out, byte(r))
	case r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0:
	case r == utf8.RuneError && len(raw) == 1:
		out = append(out, '?')
	default:
		out = append(out, raw...)
	}
	return out
}
