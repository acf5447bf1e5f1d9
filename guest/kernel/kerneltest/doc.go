// Package kerneltest makes small kernel files for tests: the headers, notes and texts that blixard looks at
// are real, the code in them is not. It also makes packages of them that look like Debian's.
//
// Nothing of it boots.
package kerneltest
