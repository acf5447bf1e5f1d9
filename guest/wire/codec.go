package wire

import (
	"encoding/binary"
	"errors"
	"math"
)

// Control messages are coded as protocol buffers are (field number and kind, then a varint or counted
// bytes; unknown fields are skipped, absent ones are zero) by hand: reflection costs a guest more time
// to start than all its mounts.

// ErrMessage is returned for bytes that are no message, or hold a field of another kind than expected.
var ErrMessage = errors.New("wire: malformed message")

// maxItems bounds repeated fields: MaxControl bytes could hold 32,768 empty ones.
const maxItems = 8192

// Kinds of fields.
const (
	kindVarint = 0
	kindBytes  = 2
)

// encoder appends fields; zero values are left out.
type encoder struct{ b []byte }

func (e *encoder) uint(num int, v uint64) {
	if v != 0 {
		e.b = binary.AppendUvarint(e.b, uint64(num)<<3|kindVarint)
		e.b = binary.AppendUvarint(e.b, v)
	}
}

// int codes negative numbers as their two's complement, ten bytes long.
func (e *encoder) int(num int, v int64) { e.uint(num, uint64(v)) }

func (e *encoder) float(num int, v float64) { e.uint(num, math.Float64bits(v)) }

func (e *encoder) bool(num int, v bool) {
	if v {
		e.uint(num, 1)
	}
}

func (e *encoder) string(num int, s string) {
	if s != "" {
		e.item(num, s)
	}
}

// item appends an element of a repeated field, which may be empty.
func (e *encoder) item(num int, s string) {
	e.b = binary.AppendUvarint(e.b, uint64(num)<<3|kindBytes)
	e.b = binary.AppendUvarint(e.b, uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) bytes(num int, b []byte) {
	if len(b) > 0 {
		e.b = binary.AppendUvarint(e.b, uint64(num)<<3|kindBytes)
		e.b = binary.AppendUvarint(e.b, uint64(len(b)))
		e.b = append(e.b, b...)
	}
}

func (e *encoder) items(num int, list []string) {
	for _, s := range list {
		e.item(num, s)
	}
}

// message appends what f encodes as one field, even if it is empty.
func (e *encoder) message(num int, f func(*encoder)) {
	var inner encoder
	f(&inner)
	e.b = binary.AppendUvarint(e.b, uint64(num)<<3|kindBytes)
	e.b = binary.AppendUvarint(e.b, uint64(len(inner.b)))
	e.b = append(e.b, inner.b...)
}

// messages appends each element as a message of its own.
func messages[T any](e *encoder, num int, list []T, encode func(*T, *encoder)) {
	for i := range list {
		e.message(num, func(inner *encoder) { encode(&list[i], inner) })
	}
}

// field is one decoded field: v of a varint, b of bytes (part of the input).
type field struct {
	num  int
	kind byte
	v    uint64
	b    []byte
}

// decodeFields calls f for each field of b.
func decodeFields(b []byte, f func(field) error) error {
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 || tag>>3 == 0 || tag>>3 > math.MaxInt16 {
			return ErrMessage
		}
		b = b[n:]
		fd := field{num: int(tag >> 3), kind: byte(tag & 7)}
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return ErrMessage
		}
		b = b[n:]
		switch fd.kind {
		case kindVarint:
			fd.v = v
		case kindBytes:
			if v > uint64(len(b)) {
				return ErrMessage
			}
			fd.b, b = b[:v], b[v:]
		default:
			return ErrMessage
		}
		if err := f(fd); err != nil {
			return err
		}
	}
	return nil
}

func (f field) string(p *string) error {
	if f.kind != kindBytes {
		return ErrMessage
	}
	*p = string(f.b)
	return nil
}

func (f field) item(p *[]string) error {
	if f.kind != kindBytes || len(*p) >= maxItems {
		return ErrMessage
	}
	*p = append(*p, string(f.b))
	return nil
}

// bytes copies, for the input is used again.
func (f field) bytes(p *[]byte) error {
	if f.kind != kindBytes {
		return ErrMessage
	}
	*p = append([]byte(nil), f.b...)
	return nil
}

// messageItem decodes one more element of a repeated message, of at most limit.
func messageItem[T any](f field, list *[]T, limit int, decode func(*T, field) error) error {
	if len(*list) >= limit {
		return ErrMessage
	}
	*list = append(*list, *new(T))
	last := &(*list)[len(*list)-1]
	return f.message(func(inner field) error { return decode(last, inner) })
}

func (f field) bool(p *bool) error {
	if f.kind != kindVarint || f.v > 1 {
		return ErrMessage
	}
	*p = f.v == 1
	return nil
}

func (f field) float(p *float64) error {
	*p = math.Float64frombits(f.v)
	if f.kind != kindVarint || math.IsNaN(*p) || math.IsInf(*p, 0) {
		*p = 0
		return ErrMessage
	}
	return nil
}

// uintField decodes a number into any integer type and refuses what does not fit it.
func uintField[T ~uint16 | ~uint32 | ~uint64 | ~int | ~int64](f field, p *T) error {
	v := T(f.v)
	if f.kind != kindVarint || uint64(v) != f.v {
		return ErrMessage
	}
	*p = v
	return nil
}

func (f field) message(decode func(field) error) error {
	if f.kind != kindBytes {
		return ErrMessage
	}
	return decodeFields(f.b, decode)
}
