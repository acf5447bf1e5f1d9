// Package unixsocket listens on and dials unix sockets whatever the length of
// their path. The kernel's address holds 107 bytes; longer paths go through
// /proc/self/fd of the socket's directory.
//
// It is not about who may connect: callers set the mode of the directory or ask
// for peer credentials.
package unixsocket
