package supervisor

// Sizes of a ring: it grows by doubling, since most consoles stay quiet after
// their boot's few KiB.
const (
	ringBytesMin = 4 << 10
	ringBytesMax = 64 << 10
)

// ring keeps the newest bytes of an endless stream, addressed by their offset in
// the stream. Not safe for concurrent use.
//
// Invariant: end-start <= len(buf) <= ringBytesMax, and len(buf) is 0 or a power
// of two.
type ring struct {
	buf        []byte
	start, end int64
}

// write adds p and drops what is oldest.
func (r *ring) write(p []byte) {
	r.grow(int(r.end-r.start) + len(p))
	if skip := len(p) - len(r.buf); skip > 0 {
		r.end += int64(skip)
		p = p[skip:]
	}
	r.put(p)
	r.start = max(r.start, r.end-int64(len(r.buf)))
}

// put copies p, which is not longer than the buffer, behind the end.
func (r *ring) put(p []byte) {
	for len(p) > 0 {
		n := copy(r.buf[int(r.end)&(len(r.buf)-1):], p)
		p, r.end = p[n:], r.end+int64(n)
	}
}

// grow makes room for want bytes, as far as ringBytesMax allows.
func (r *ring) grow(want int) {
	size := max(len(r.buf), ringBytesMin)
	for size < want && size < ringBytesMax {
		size *= 2
	}
	if size == len(r.buf) {
		return
	}
	n := ring{buf: make([]byte, size), start: r.start, end: r.start}
	for n.end < r.end {
		n.put(r.piece(n.end))
	}
	*r = n
}

// piece gives what lies in one piece in the buffer from offset at on.
func (r *ring) piece(at int64) []byte {
	from := int(at) & (len(r.buf) - 1)
	return r.buf[from:min(from+int(r.end-at), len(r.buf))]
}

// read copies bytes from offset at into p. It gives how many, and how many bytes
// before them are not there any more.
func (r *ring) read(at int64, p []byte) (n int, skipped int64) {
	if at < r.start {
		skipped, at = r.start-at, r.start
	}
	for n < len(p) && at < r.end {
		c := copy(p[n:], r.piece(at))
		n, at = n+c, at+int64(c)
	}
	return n, skipped
}
