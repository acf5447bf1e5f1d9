// Package auth says who calls and whether they may.
//
// On the unix socket the kernel vouches for the caller (SO_PEERCRED and
// SO_PEERGROUPS). Allowed are root, the daemon's own user and the members of one
// group. Everybody else may connect and is told why each call is refused.
//
// The order of duties: Listener notes the caller of each connection; Credentials
// hands that to gRPC and ConnContext to net/http; Allow, called before every
// call, decides; FromContext tells a handler who it was.
//
// It is not about what a caller may do with which VM: on the socket whoever is
// allowed may do everything.
package auth
