package wire

import "bytes"

// scanState says what the next byte of a stream means.
type scanState byte

const (
	scanClosed  scanState = iota // no session: bytes are dropped
	scanData                     // bytes belong to the session
	scanEscape                   // after Escape
	scanHello                    // within a hello's or reply's line
	scanRefused                  // after Escape without a session: what follows is still dropped
)

// Found is what Scanner.Next met.
type Found byte

// What a Scanner can meet.
const (
	FoundNothing Found = iota // all input was used up
	FoundData                 // bytes of the session
	FoundBreak                // a marker began: the session before it is over
	FoundHello                // a whole hello with the right token
)

// Scanner is the guest's reading of a host's stream: it takes the escapes out and finds hellos at
// whatever point they come. It keeps at most MaxHello bytes. Not safe for concurrent use.
type Scanner struct {
	token Token
	state scanState
	line  []byte
	hello Hello
}

// NewScanner makes a scanner that answers only to token.
func NewScanner(token Token) *Scanner {
	return &Scanner{token: token, line: make([]byte, 0, MaxHello)}
}

var literalEscape = []byte{Escape}

// Next looks at p and returns the first thing it finds and the input still to be looked at. data is
// set for FoundData only, and is part of p or a constant: use it before p changes.
func (s *Scanner) Next(p []byte) (found Found, data, rest []byte) {
	for len(p) > 0 {
		switch s.state {
		case scanClosed:
			i := bytes.IndexByte(p, Escape)
			if i < 0 {
				return FoundNothing, nil, nil
			}
			s.state, p = scanRefused, p[i+1:]
		case scanData:
			i := bytes.IndexByte(p, Escape)
			if i < 0 {
				return FoundData, p, nil
			}
			s.state = scanEscape
			if i > 0 {
				return FoundData, p[:i], p[i+1:]
			}
			p = p[1:]
		case scanEscape, scanRefused:
			if found, data = s.afterEscape(p[0]); found != FoundNothing {
				return found, data, p[1:]
			}
			p = p[1:]
		case scanHello:
			var ok bool
			if p, ok = s.collect(p); ok {
				s.state = scanData
				return FoundHello, nil, p
			}
		}
	}
	return FoundNothing, nil, nil
}

// afterEscape decides what the byte after an Escape makes of it.
func (s *Scanner) afterEscape(b byte) (Found, []byte) {
	open := s.state == scanEscape
	switch b {
	case Escape: // the first one was the last byte of a host that died: keep the second
		return FoundNothing, nil
	case escapedByte:
		if open {
			s.state = scanData
			return FoundData, literalEscape
		}
		s.state = scanClosed
		return FoundNothing, nil
	case helloByte:
		s.state, s.line = scanHello, s.line[:0]
	default:
		s.state = scanClosed
	}
	if open {
		return FoundBreak, nil
	}
	return FoundNothing, nil
}

// collect takes bytes of a hello's line; true means a whole hello for this guest is in s.hello.
func (s *Scanner) collect(p []byte) ([]byte, bool) {
	for i, b := range p {
		switch {
		case b == Escape:
			s.state = scanRefused
			return p[i+1:], false
		case b == '\n':
			s.state = scanClosed
			h, err := parseHello(s.line)
			if err != nil || h.Token != s.token {
				return p[i+1:], false
			}
			s.hello = h
			return p[i+1:], true
		case len(s.line) >= MaxHello:
			s.state = scanClosed
			return p[i+1:], false
		}
		s.line = append(s.line, b)
	}
	return nil, false
}

// Hello is the hello of the last FoundHello.
func (s *Scanner) Hello() Hello { return s.hello }

// Refuse drops everything until the next hello, after a FoundHello that can't be served.
func (s *Scanner) Refuse() { s.state = scanClosed }
