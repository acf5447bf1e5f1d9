// Package blixard holds the tests of the tree as a whole: who may import whom,
// and what every file must have. It has no code.
package blixard
