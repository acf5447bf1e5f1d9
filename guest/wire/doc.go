// Package wire is what the node's agent and the guest's agent say to each other: the types, the
// frame codec, the marker by which both ends find a common start in a byte stream, and the stream
// multiplexer's settings.
//
// It is not a client and not an init: package guest is the host's side, package guest/pid1 the
// guest's. Both import this package, so it holds nothing that is dear to link or slow to start.
//
// One connection goes through these steps:
//  1. The host writes a marker: an escape byte, the secret of this boot, its version, a fresh nonce.
//     The escape byte never occurs unescaped elsewhere in what a host writes, so a marker is found at
//     any point of the stream, even in the middle of a frame that a dead host left unfinished.
//  2. The guest ends what session it had and answers with the nonce and its own version.
//     The host discards every byte before the answer to its own nonce.
//  3. Both run yamux over the rest, the host as client. Only the host opens streams, one a call.
//  4. A call is a request frame and a response frame. Exec, attach, events, copies and dialled connections
//     go on with frames.
package wire
