package problem

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// Kind is the closed set of what can be wrong. The words cross the wire: never
// change or remove one.
type Kind string

// The kinds, and what a caller can do about each.
const (
	Invalid     Kind = "invalid"     // the request itself is wrong: change it
	NotFound    Kind = "not_found"   // no object of that name
	Conflict    Kind = "conflict"    // it clashes with what is there
	NoCapacity  Kind = "no_capacity" // no room for it now
	NotLeader   Kind = "not_leader"  // ask another node
	Unavailable Kind = "unavailable" // try again later
	Fenced      Kind = "fenced"      // an older epoch than the resource has seen
	Denied      Kind = "denied"      // the caller may not
	Internal    Kind = "internal"    // a fault of blixard or its host
)

// kindCodes maps kinds to the codes of gRPC, which vanguard in turn maps to
// HTTP.
var kindCodes = map[Kind]codes.Code{
	Invalid:     codes.InvalidArgument,
	NotFound:    codes.NotFound,
	Conflict:    codes.FailedPrecondition,
	NoCapacity:  codes.ResourceExhausted,
	NotLeader:   codes.Unavailable,
	Unavailable: codes.Unavailable,
	Fenced:      codes.Aborted,
	Denied:      codes.PermissionDenied,
	Internal:    codes.Internal,
}

// Error is a problem with an optional cause. It is immutable after it was
// returned, and so safe for concurrent use.
type Error struct {
	Kind Kind
	// Code is stable, lower case, "noun.what": "vm.name_taken".
	Code string
	// Message says what and where, without a full stop.
	Message string
	// Hint says how to mend it; it may be empty for internal ones.
	Hint  string
	Cause error
	// Violations are the fields of the request that it is about; none where it is about
	// no field.
	Violations []Violation
}

// New makes a problem; format and args make its message.
func New(kind Kind, code, format string, args ...any) *Error {
	return &Error{Kind: kind, Code: code, Message: fmt.Sprintf(format, args...)}
}

// WithHint returns a copy of e with the way out.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// WithCause returns a copy of e that wraps err, whose text is appended to the
// message.
func (e *Error) WithCause(err error) *Error {
	c := *e
	c.Cause = err
	return &c
}

// WithField returns a copy of e that is about one field of the request; format and args
// make its path.
func (e *Error) WithField(format string, args ...any) *Error {
	return e.WithViolations([]Violation{{Field: fmt.Sprintf(format, args...), Message: e.Error()}})
}

// WithViolations returns a copy of e that is about fields, at most ViolationsMax of them.
func (e *Error) WithViolations(all []Violation) *Error {
	c := *e
	c.Violations = nil
	for _, v := range all[:min(len(all), ViolationsMax)] {
		v.Field = strings.ToValidUTF8(v.Field[:min(len(v.Field), fieldBytesMax)], "")
		c.Violations = append(c.Violations, v)
	}
	return &c
}

// Error gives the message and its cause, without the hint.
func (e *Error) Error() string {
	if e.Cause != nil {
		return e.Message + ": " + e.Cause.Error()
	}
	return e.Message
}

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Cause }

// Proto gives the form that crosses the wire.
func (e *Error) Proto() *blixardv1.Problem {
	p := &blixardv1.Problem{Kind: string(e.Kind), Code: e.Code, Message: e.Error(), Hint: e.Hint}
	for _, v := range e.Violations {
		p.Violations = append(p.Violations, &blixardv1.FieldViolation{Field: v.Field, Message: v.Message})
	}
	return p
}

// GRPCStatus makes the gRPC library send e as a status with its problem in the
// details.
func (e *Error) GRPCStatus() *status.Status {
	code, ok := kindCodes[e.Kind]
	if !ok {
		code = codes.Internal
	}
	st := status.New(code, e.Error())
	if with, err := st.WithDetails(e.Proto()); err == nil {
		return with
	}
	return st
}

// FromProto gives the error of a wire form; nil for nil.
func FromProto(p *blixardv1.Problem) *Error {
	if p == nil {
		return nil
	}
	e := &Error{Kind: Kind(p.GetKind()), Code: p.GetCode(), Message: p.GetMessage(), Hint: p.GetHint()}
	for _, v := range p.GetViolations() {
		e.Violations = append(e.Violations, Violation{Field: v.GetField(), Message: v.GetMessage()})
	}
	return e
}

// From finds the problem in err, or makes one of what a gRPC status or a context
// says. It returns nil for nil.
func From(err error) *Error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		if e.Error() == err.Error() {
			return e
		}
		c := *e
		c.Message, c.Cause = err.Error(), nil
		return &c
	}
	if st, ok := status.FromError(err); ok {
		return fromStatus(st)
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return New(Unavailable, "deadline", "%v", err).WithHint("try again, or allow more time")
	case errors.Is(err, context.Canceled):
		return New(Unavailable, "canceled", "%v", err)
	}
	return New(Internal, "internal", "%v", err)
}

func fromStatus(st *status.Status) *Error {
	for _, d := range st.Details() {
		if p, ok := d.(*blixardv1.Problem); ok {
			return FromProto(p)
		}
	}
	switch st.Code() {
	case codes.InvalidArgument, codes.OutOfRange:
		return New(Invalid, "request.invalid", "%s", st.Message())
	case codes.NotFound:
		return New(NotFound, "not_found", "%s", st.Message())
	case codes.PermissionDenied, codes.Unauthenticated:
		return New(Denied, "denied", "%s", st.Message())
	case codes.DeadlineExceeded:
		return New(Unavailable, "deadline", "%s", st.Message()).WithHint("try again, or allow more time")
	case codes.Canceled:
		return New(Unavailable, "canceled", "%s", st.Message())
	case codes.Unavailable:
		return New(Unavailable, "unavailable", "%s", st.Message())
	case codes.ResourceExhausted:
		return New(Invalid, "request.too_large", "%s", st.Message())
	case codes.Unimplemented:
		return New(Unavailable, "unimplemented", "%s", st.Message()).WithHint("the node runs another version of blixard")
	}
	return New(Internal, "internal", "%s", st.Message())
}

// Is reports whether err carries a problem of that kind.
func Is(err error, kind Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == kind
}

// HasCode reports whether err carries a problem of that code.
func HasCode(err error, code string) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == code
}
