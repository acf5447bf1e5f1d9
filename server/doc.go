// Package server is the API of a node: the gRPC services of api/blixard/v1 over
// the node's unix socket, and the same services as JSON over HTTP beside them on
// that socket.
//
// A request is authenticated, validated, and turned into a proposal or a read;
// what the cluster then does of it is decided elsewhere. Input and output of VMs
// (console, logs, exec, attach) is passed on to the agent and the supervisor of
// the node the VM is on.
//
// It is not where anything is decided or kept.
package server
