// Package escapes takes control sequences out of a guest's output, so that it
// can be shown on a terminal without acting on it.
//
// It is not a terminal: what a sequence would have done to the screen is lost.
package escapes
