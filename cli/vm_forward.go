package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
	"github.com/blixard/blixard/internal/objectname"
)

const (
	// forwardsMax connections at a time of one port-forward.
	forwardsMax = 256
	sshPort     = 22
)

func (a *app) vmForwardCommand() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use: "port-forward NAME [LOCAL:]PORT...", Short: "Reach ports of a VM from here, until this command is ended", Args: atLeastOne("NAME"), ValidArgsFunction: a.completeVMs(1),
		Long: `Listen here and carry each connection to that port of the VM's loopback address, through the node and the guest's agent: the
VM needs no network. Without LOCAL the port here is the same; 0 chooses a free one. "NAME PORT -" carries one connection
over standard input and output instead.`,
		Example: "  blixard vm port-forward db 5432\n  blixard vm port-forward web 8080:80\n  blixard vm port-forward db 22 -",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usageError("the port is missing").WithHint("write `blixard vm port-forward NAME 8080:80`")
			}
			if args[len(args)-1] == "-" && len(args) == 3 {
				port, _, ok := portRange(args[1])
				if !ok {
					return usageError("%q is no port", args[1]).WithHint("write a number from 1 to 65535")
				}
				return a.withVM(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
					return forwardOne(ctx, c, a.full(args[0]), port, a.stdin, a.stdout, nil)
				})
			}
			return a.withVM(cmd.Context(), a.full(args[0]), func(ctx context.Context, c *client.Client) error {
				return a.portForward(ctx, c, a.full(args[0]), address, args[1:])
			})
		},
	}
	cmd.Flags().StringVar(&address, "address", "127.0.0.1", "address to listen on")
	return cmd
}

// portForward listens for each port and carries connections until ctx ends.
func (a *app) portForward(ctx context.Context, c *client.Client, vm, address string, ports []string) error {
	if _, err := c.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: vm}); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			_ = l.Close()
		}
	}()
	slots := make(chan struct{}, forwardsMax)
	for _, text := range ports {
		local, guestText, found := strings.Cut(text, ":")
		if !found {
			guestText = local
		}
		port, _, ok := portRange(guestText)
		if _, err := strconv.ParseUint(local, 10, 16); err != nil || !ok {
			return usageError("%q is not PORT or LOCAL:PORT", text).WithHint("write 8080:80")
		}
		l, err := net.Listen("tcp", net.JoinHostPort(address, local))
		if err != nil {
			return usageError("port %s can't be listened on: %v", local, err).WithHint("choose another, as in 0:%d for a free one", port)
		}
		listeners = append(listeners, l)
		if _, err := fmt.Fprintf(a.stdout, "%s -> %s:%d\n", l.Addr(), clean(vm), port); err != nil {
			return err
		}
		wg.Go(func() { a.carry(ctx, c, vm, port, l, slots) })
	}
	<-ctx.Done()
	return nil
}

func (a *app) carry(ctx context.Context, c *client.Client, vm string, port uint32, l net.Listener, slots chan struct{}) {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			defer func() { _ = conn.Close() }()
			tcp, _ := conn.(*net.TCPConn)
			if err := forwardOne(ctx, c, vm, port, conn, conn, tcp); err != nil && ctx.Err() == nil {
				_, _ = fmt.Fprintf(a.stderr, "%s\n", a.errColor(faint, clean(err.Error())))
			}
		})
	}
}

// forwardOne carries one connection; half is closed for writing when the guest sends
// no more.
func forwardOne(ctx context.Context, c *client.Client, vm string, port uint32, in io.Reader, out io.Writer, half *net.TCPConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.VMs().Forward(ctx)
	if err != nil {
		return err
	}
	start := &blixardv1.ForwardStart{Name: vm, Port: port}
	if err := stream.Send(&blixardv1.ForwardRequest{Message: &blixardv1.ForwardRequest_Start{Start: start}}); err != nil {
		return firstError(err, func() error { _, err := stream.Recv(); return err })
	}
	if _, err := stream.Recv(); err != nil { // started
		return err
	}
	// The reader ends with the connection; one of standard input ends with the program.
	go func() {
		buf := make([]byte, copyChunkBytes)
		for {
			n, err := in.Read(buf)
			if n > 0 && stream.Send(&blixardv1.ForwardRequest{Message: &blixardv1.ForwardRequest_Data{Data: buf[:n]}}) != nil {
				return
			}
			if err != nil {
				_ = stream.Send(&blixardv1.ForwardRequest{Message: &blixardv1.ForwardRequest_End{End: true}})
				return
			}
		}
	}()
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(m.GetData()) > 0 {
			if _, err := out.Write(m.GetData()); err != nil {
				return nil //nolint:nilerr // who does not read any more has had enough
			}
		}
		if m.GetEnd() && half != nil {
			_ = half.CloseWrite()
		}
	}
}

func (a *app) vmSSHCommand() *cobra.Command {
	var user, identity string
	cmd := &cobra.Command{
		Use: "ssh NAME [flags] [-- COMMAND [ARG]...]", Short: "Log in to a VM with an SSH server of its own", Args: atLeastOne("NAME"), ValidArgsFunction: a.completeVMs(1),
		Long: `Log in to a VM whose image runs an SSH server, through the node and the guest's agent: the VM needs no network. It must have been
given a key (--ssh-key). For a VM without one, use "vm exec -it NAME sh". Needs the program ssh here.`,
		Example: "  blixard vm ssh web\n  blixard vm ssh web --user debian -- uptime",
		RunE: func(cmd *cobra.Command, args []string) error {
			name, command, err := commandLine(cmd, args)
			if err != nil || askedForHelp(cmd) {
				return orHelp(cmd, err)
			}
			return a.ssh(cmd.Context(), a.full(name), user, identity, command)
		},
	}
	cmd.Flags().StringVarP(&user, "user", "u", "root", "user to log in as")
	cmd.Flags().StringVarP(&identity, "identity", "i", "", "file with the private key (default: ssh's own)")
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func (a *app) ssh(ctx context.Context, name, user, identity string, command []string) error {
	program, err := exec.LookPath("ssh")
	if err != nil {
		return usageError("the program ssh is missing").WithHint("install it (apt-get install openssh-client), or use `blixard vm exec -it %s sh`", name)
	}
	var id string
	if err := a.withVM(ctx, name, func(ctx context.Context, c *client.Client) error {
		resp, err := c.VMs().GetVM(ctx, &blixardv1.GetVMRequest{Name: name})
		id = resp.GetVm().GetId()
		return err
	}); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	proxy := []string{self}
	if a.addr != "" {
		proxy = append(proxy, "--addr", a.addr)
	}
	if a.credentials != "" {
		proxy = append(proxy, "--credentials", a.credentials)
	}
	proxy = append(proxy, "vm", "port-forward", id, strconv.Itoa(sshPort), "-")
	for i, p := range proxy {
		proxy[i] = "'" + strings.ReplaceAll(strings.ReplaceAll(p, "%", "%%"), "'", `'\''`) + "'"
	}
	// The host key is remembered under the VM's id, which is never used again.
	args := []string{"-o", "ProxyCommand=" + strings.Join(proxy, " "), "-o", "HostKeyAlias=" + id, "-o", "StrictHostKeyChecking=accept-new", "-l", user}
	if identity != "" {
		args = append(args, "-i", identity)
	}
	cmd := exec.CommandContext(ctx, program, append(append(args, "--", objectname.Host(name)), command...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = a.stdin, a.stdout, a.stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &exitError{code: exit.ExitCode()}
	}
	return err
}
