// Package problem holds the errors that cross the wire: a closed set of kinds,
// a stable code for programs, a sentence for people and a hint that says how to
// mend it.
//
// It is not a place for causes that only a log needs: wrap those with
// fmt.Errorf and %w, and give them a problem where they meet a caller.
package problem
