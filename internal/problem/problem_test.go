package problem

import (
	"context"
	"errors"
	"fmt"
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
