package problem

import "errors"

// Limits of what is told of fields: it crosses the wire in the head of an answer, which
// has less room than a body.
const (
	// ViolationsMax of one problem.
	ViolationsMax = 20
	// fieldBytesMax of a path: keys of maps, which are part of it, may be long.
	fieldBytesMax = 256
)

// Violation says what is wrong with one field of a request.
type Violation struct {
	// Field is its path in the request, in the names of the API: spec.ports[1].host_port.
	Field string
	// Message says what is wrong, without the path.
	Message string
}

// Under gives the problem of a part of a request as one of the whole: prefix is the path of
// that part. An err that is about no field stays as it is.
func Under(prefix string, err error) error {
	var e *Error
	if !errors.As(err, &e) || len(e.Violations) == 0 {
		return err
	}
	return From(err).Under(prefix)
}

// Under is the function of that name for a problem, which must not be nil.
func (e *Error) Under(prefix string) *Error {
	all := make([]Violation, 0, len(e.Violations))
	for _, v := range e.Violations {
		all = append(all, Violation{Field: prefix + "." + v.Field, Message: v.Message})
	}
	return e.WithViolations(all)
}
