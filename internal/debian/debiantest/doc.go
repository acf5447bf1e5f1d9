// Package debiantest gives tests a Debian package repository of their own, served to the host's apt over
// HTTP on the loopback interface, and makes the package files in it.
//
// It is no real repository: it is not signed, and has what the test put into it and nothing else.
package debiantest
