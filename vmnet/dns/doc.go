// Package dns answers the names of a network's VMs, to the guests of that network,
// and passes on what else they ask to the host's resolvers.
//
// Every VM has the name VM.NETWORK.blixard, which a guest finds as VM too, since
// NETWORK.blixard is its search domain; its addresses lead back to the name. Names
// of other networks are answered with "no such name": they are never passed on, and
// never told.
//
// What a query is answered with is a pure function of the query and the names
// ([Zone.Answer]); a [Server] is the sockets round it, on one bridge.
//
// It is not a cache, no validator of DNSSEC and no server for anybody but guests: an
// address that is not a guest's gets no answer.
package dns
