package problem

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestProblemSurvivesTheWire(t *testing.T) {
	for kind, code := range kindCodes {
		e := New(kind, "vm.test", "vm %q is odd", "a").WithHint("do %s", "this").WithCause(errors.New("why"))
		st := status.Convert(e)
		if st.Code() != code {
			t.Errorf("%s: code %v, want %v", kind, st.Code(), code)
		}
		got := From(st.Err())
		if got.Kind != kind || got.Code != "vm.test" || got.Hint != "do this" || got.Error() != `vm "a" is odd: why` {
			t.Errorf("%s: got %+v", kind, got)
		}
	}
	if c := status.Convert(New("odd", "x", "y")).Code(); c != codes.Internal {
		t.Errorf("unknown kind maps to %v", c)
	}
}

// What fields a problem is about crosses the wire, grows with the request around them, and
// has limits.
func TestFields(t *testing.T) {
	e := New(Invalid, "port.twice", "port tcp/80 is published twice").WithField("ports[%d]", 1).WithHint("h")
	want := []Violation{{Field: "spec.vm.ports[1]", Message: "port tcp/80 is published twice"}}
	under := Under("spec", Under("vm", e))
	if got := From(status.Convert(under).Err()); !slices.Equal(got.Violations, want) || got.Hint != "h" || got.Code != "port.twice" {
		t.Errorf("got %+v", got)
	}
	wrapped := From(Under("spec.vm", fmt.Errorf("create: %w", e)))
	if !slices.Equal(wrapped.Violations, want) || wrapped.Error() != "create: port tcp/80 is published twice" {
		t.Errorf("wrapped = %+v", wrapped)
	}
	if e.Violations[0].Field != "ports[1]" {
		t.Errorf("the problem itself changed: %+v", e)
	}
	plain := errors.New("x")
	if Under("spec", plain) != plain || Under("spec", nil) != nil {
		t.Error("what is about no field must stay as it is")
	}
	long := make([]Violation, ViolationsMax+1)
	long[0].Field = "x" + strings.Repeat("ü", fieldBytesMax)
	if got := e.WithViolations(long).Violations; len(got) != ViolationsMax || len(got[0].Field) != fieldBytesMax-1 {
		t.Errorf("%d violations, the first of %d bytes", len(got), len(got[0].Field))
	}
}

func TestFrom(t *testing.T) {
	cause := New(Conflict, "vm.name_taken", "taken").WithHint("h")
	for _, tc := range []struct {
		err  error
		kind Kind
		code string
	}{
		{cause, Conflict, "vm.name_taken"},
		{fmt.Errorf("create vm: %w", cause), Conflict, "vm.name_taken"},
		{context.DeadlineExceeded, Unavailable, "deadline"},
		{fmt.Errorf("x: %w", context.Canceled), Unavailable, "canceled"},
		{errors.New("x"), Internal, "internal"},
		{status.Error(codes.InvalidArgument, "x"), Invalid, "request.invalid"},
		{status.Error(codes.NotFound, "x"), NotFound, "not_found"},
		{status.Error(codes.PermissionDenied, "x"), Denied, "denied"},
		{status.Error(codes.DeadlineExceeded, "x"), Unavailable, "deadline"},
		{status.Error(codes.Canceled, "x"), Unavailable, "canceled"},
		{status.Error(codes.Unavailable, "x"), Unavailable, "unavailable"},
		{status.Error(codes.ResourceExhausted, "x"), Invalid, "request.too_large"},
		{status.Error(codes.Unimplemented, "x"), Unavailable, "unimplemented"},
		{status.Error(codes.DataLoss, "x"), Internal, "internal"},
	} {
		got := From(tc.err)
		if got.Kind != tc.kind || got.Code != tc.code {
			t.Errorf("From(%v) = %s %s, want %s %s", tc.err, got.Kind, got.Code, tc.kind, tc.code)
		}
	}
	if From(nil) != nil || FromProto(nil) != nil {
		t.Error("nil must stay nil")
	}
	wrapped := From(fmt.Errorf("create vm: %w", cause))
	if wrapped.Error() != "create vm: taken" || wrapped.Hint != "h" {
		t.Errorf("wrapped = %+v", wrapped)
	}
	if !Is(wrapped, Conflict) || Is(wrapped, Invalid) || Is(errors.New("x"), Conflict) {
		t.Error("Is")
	}
	if !HasCode(wrapped, "vm.name_taken") || HasCode(wrapped, "x") || HasCode(nil, "x") {
		t.Error("HasCode")
	}
	if !errors.Is(New(Internal, "x", "y").WithCause(context.Canceled), context.Canceled) {
		t.Error("Unwrap")
	}
}
