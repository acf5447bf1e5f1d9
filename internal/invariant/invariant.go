package invariant

import "fmt"

// Broken is the value of the panic that a broken invariant raises.
type Broken struct{ Message string }

func (b *Broken) Error() string { return "invariant broken: " + b.Message }

// That panics with *[Broken] unless ok. format and args give the values that
// disagree and the likely cause.
//
// The arguments are evaluated either way: in a hot path test first and call
// [Fail].
func That(ok bool, format string, args ...any) {
	if !ok {
		Fail(format, args...)
	}
}

// Fail panics with *[Broken].
func Fail(format string, args ...any) {
	panic(&Broken{Message: fmt.Sprintf(format, args...)})
}
