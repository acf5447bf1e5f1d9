package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/blixard/blixard/internal/problem"
)

// The exit codes. Programs rely on them: never change one.
const (
	exitOK          = 0
	exitFailure     = 1 // a fault of blixard or its host
	exitUsage       = 2 // the command line or the request is wrong
	exitNotFound    = 3
	exitConflict    = 4
	exitUnavailable = 5 // no node there, not the leader, or not in time
	exitDenied      = 6
	exitNoCapacity  = 7
	exitFenced      = 8
	exitDiffers     = 10 // of diff
	// run and exec end with the exit code of the guest's command. What goes wrong
	// before it started has a code of its own, as in env(1) and docker(1): 126
	// and 127 come from the guest (can't be run, not found), 128 and more from a
	// signal.
	exitNotStarted = 125
	exitSignalBase = 128
)

const exitHelp = `Exit codes: 0 done, 1 failure, 2 wrong usage or request, 3 not found, 4 conflict, 5 node unavailable,
6 denied, 7 no capacity, 8 fenced, 10 "diff" found a difference, 128+N ended by signal N. "run" and "vm exec" pass on the exit code of
the guest's command: 125 means that blixard failed before it started, 126 that it can't be run, 127 that
it was not found.`

// exitCodes maps kinds of problems.
var exitCodes = map[problem.Kind]int{
	problem.Invalid:     exitUsage,
	problem.NotFound:    exitNotFound,
	problem.Conflict:    exitConflict,
	problem.NoCapacity:  exitNoCapacity,
	problem.NotLeader:   exitUnavailable,
	problem.Unavailable: exitUnavailable,
	problem.Fenced:      exitFenced,
	problem.Denied:      exitDenied,
	problem.Internal:    exitFailure,
}

// exitError ends the program with a code; err, if any, is shown.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// signalError is the cause of a context that a signal ended.
type signalError struct{ signal syscall.Signal }

func (e *signalError) Error() string { return "interrupted by " + e.signal.String() }

// usageError is a problem of the command line.
func usageError(format string, args ...any) *problem.Error {
	return problem.New(problem.Invalid, "usage", format, args...)
}

// exitCode gives the code for what a command returned.
func exitCode(err error) int {
	var exit *exitError
	var sig *signalError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &sig):
		return exitSignalBase + int(sig.signal)
	case errors.Is(err, syscall.EPIPE):
		return exitSignalBase + int(syscall.SIGPIPE)
	}
	if code, ok := exitCodes[problem.From(leaves(err)[0]).Kind]; ok {
		return code
	}
	return exitFailure
}

// leaves takes joined errors apart.
func leaves(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, leaves(e)...)
	}
	if len(all) == 0 {
		return []error{err}
	}
	return all
}

// showError writes what went wrong and the way out.
func (a *app) showError(err error) {
	var exit *exitError
	var sig *signalError
	switch {
	case errors.As(err, &exit) && exit.err == nil,
		errors.Is(err, syscall.EPIPE):
		return
	case errors.As(err, &sig):
		_, _ = fmt.Fprintln(a.stderr, sig.Error())
		return
	case errors.As(err, &exit):
		err = exit.err
	}
	for _, e := range leaves(err) {
		p := problem.From(e)
		_, _ = fmt.Fprintf(a.stderr, "%s %s\n", a.errColor(red, "error:"), cleanLines(p.Error()))
		if p.Hint != "" {
			_, _ = fmt.Fprintf(a.stderr, "%s %s\n", a.errColor(cyan, "hint:"), cleanLines(p.Hint))
		}
		if p.Code != "" && p.Code != "internal" {
			_, _ = fmt.Fprintf(a.stderr, "%s %s\n", a.errColor(faint, "code:"), clean(p.Code))
		}
	}
}

// cleanLines makes text from a node safe for a terminal and keeps its lines.
func cleanLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, l := range lines {
		lines[i] = clean(l)
	}
	return strings.Join(lines, "\n")
}

// causeOf gives the signal that ended ctx in the place of an error which only
// says that ctx ended.
func causeOf(ctx context.Context, err error) error {
	var sig *signalError
	if err != nil && ctx.Err() != nil && errors.As(context.Cause(ctx), &sig) {
		return sig
	}
	return err
}

// recovered turns a panic into an error: a bug of blixard must not leave a stack
// trace in a person's terminal, unless it is asked for.
func (a *app) recovered(value any, stack []byte) error {
	p := problem.New(problem.Internal, "cli.panic", "a bug in blixard: %v", value)
	if os.Getenv("BLIXARD_TEST_STACK") != "" {
		return p.WithHint("%s", stack)
	}
	return p.WithHint("please report it with the command you typed; BLIXARD_TEST_STACK=1 shows where it happened")
}
