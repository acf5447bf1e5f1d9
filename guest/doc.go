// Package guest is the host's side of the agent inside a microVM: it connects to a guest over
// any byte stream, configures the boot, follows it, runs commands in it and ends it.
//
// It is not the guest's side (guest/pid1), not the wire format (guest/wire, whose types it
// shows under its own name) and knows no hypervisor: the caller brings a net.Conn.
//
// A guest is hostile. Everything it sends is parsed with limits, a broken rule ends the session
// with a problem that names it, and nothing it sends grows the host's memory beyond the windows
// of the streams the host itself opened.
//
// Duties of the caller, in this order:
//  1. Make a Token a boot and put Token.KernelArg on the kernel command line.
//  2. Connect as soon as there is a socket: the bytes wait there until the guest is up.
//  3. Read Events to its end. The first event says what a guest that was already running did.
//  4. Configure if the phase is waiting-config. Repeating it with the same config is harmless.
//  5. On an exited event: record it, then AckExit, upon which the guest ends the machine.
//  6. When Done is closed and the machine still runs: connect again with the same token.
package guest
