// Package nearest finds the word a person probably meant.
//
// It knows nothing of what the words stand for.
package nearest
