// Package invariant checks, in the product, what must always hold.
//
// It is not for bad input or failing hardware, which are errors: a broken
// invariant means that the program is wrong, and going on would spread the
// damage. The process stops with both values and the likely cause.
package invariant
