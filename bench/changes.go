package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// keys that are changed at random, on both sides.
	keys = 1000
	// valueBytes of a change.
	valueBytes = 256
	// readyTimeout of a child process.
	readyTimeout = 60 * time.Second
)

// change makes one acknowledged change. It belongs to one goroutine.
type change func(ctx context.Context, key int, value string) error

// target is a server as its clients see it.
type target interface {
	client(ctx context.Context, i int) (change, error)
	close() error
}

func keyName(i int) string { return "bench-" + strconv.Itoa(i) }

// runID and sessions make the idempotency keys of this run different from all
// others.
var (
	runID    = strings.ToLower(rand.Text()[:16])
	sessions atomic.Uint64
)

// idempotencyKey is as long as the keys of blixard's own client.
func idempotencyKey(session, n uint64) string {
	return runID + "-" + strconv.FormatUint(session, 36) + "-" + strconv.FormatUint(n, 36)
}

// value is random text, which neither side can compress or find equal to the
// last.
func value(r *mathrand.Rand, space []byte) string {
	const letters = "abcdefghijklmnopqrstuvwxyz012345"
	for i := 0; i < len(space); i += 12 {
		x := r.Uint64()
		for j := i; j < min(i+12, len(space)); j++ {
			space[j] = letters[x&31]
			x >>= 5
		}
	}
	return string(space)
}

// load runs clients for a while and gives changes a second.
func load(ctx context.Context, t target, clients int, length time.Duration) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var stop atomic.Bool
	var total atomic.Int64
	var running sync.WaitGroup
	errs := make(chan error, clients)
	began := time.Now()
	for i := range clients {
		do, err := t.client(ctx, i)
		if err != nil {
			return 0, err
		}
		running.Go(func() {
			r := mathrand.New(mathrand.NewPCG(uint64(i), uint64(began.UnixNano())))
			space := make([]byte, valueBytes)
			n := int64(0)
			for !stop.Load() {
				if err := do(ctx, r.IntN(keys), value(r, space)); err != nil {
					errs <- err
					break
				}
				n++
			}
			total.Add(n)
		})
	}
	began = time.Now()
	time.Sleep(length)
	stop.Store(true)
	running.Wait()
	took := time.Since(began)
	select {
	case err := <-errs:
		return 0, err
	default:
	}
	return float64(total.Load()) / took.Seconds(), nil
}

// child is a server process.
type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
}

func startChild(ctx context.Context, out io.Writer, name string, args ...string) (*child, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stderr = out
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line := make(chan error, 1)
	go func() {
		_, err := bufio.NewReader(stdout).ReadString('\n')
		line <- err
	}()
	c := &child{cmd, stdin}
	select {
	case err = <-line:
	case <-time.After(readyTimeout):
		err = errors.New("it was not ready in time")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s %s: %w", name, args[0], err), c.stop())
	}
	return c, nil
}

func (c *child) stop() error { return errors.Join(c.stdin.Close(), c.cmd.Wait()) }

type options struct {
	clients []int
	rounds  int
	length  time.Duration
	dir     string
	conns   int
	only    string
	program string
}

func parse(args []string) (options, error) {
	var o options
	set := flag.NewFlagSet("changes", flag.ContinueOnError)
	clients := set.String("clients", "1,64,256", "numbers of clients")
	set.IntVar(&o.rounds, "rounds", 5, "rounds for each number")
	seconds := set.Float64("seconds", 3, "length of a round")
	set.StringVar(&o.dir, "dir", "", "directory on the disk to measure; it must not be there yet")
	only := set.String("only", "", "the one contender to measure, by its name")
	set.StringVar(&o.program, "program", "bin/blixard", "the blixard to measure")
	set.IntVar(&o.conns, "conns", 2, "connections that the clients share, at most")
	if err := set.Parse(args); err != nil {
		return o, err
	}
	o.only = *only
	o.length = time.Duration(*seconds * float64(time.Second))
	for _, f := range strings.Split(*clients, ",") {
		n, err := strconv.Atoi(f)
		if err != nil {
			return o, fmt.Errorf("-clients: %w", err)
		}
		o.clients = append(o.clients, n)
	}
	return o, nil
}

// contender is one column of the table.
type contender struct {
	name string
	dial func(conns int) (target, error)
}

func changes(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp(".", "data-"); err != nil {
			return err
		}
		if o.dir, err = filepath.Abs(o.dir); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, side := range []string{"etcd", "blixard"} {
		if err := os.MkdirAll(filepath.Join(o.dir, side), 0o700); err != nil {
			return err
		}
	}
	etcd, err := startChild(ctx, os.Stderr, self, "serve-etcd", filepath.Join(o.dir, "etcd"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, etcd.stop()) }()
	node, err := startDaemon(ctx, os.Stderr, o.program, filepath.Join(o.dir, "blixard"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, node.stop()) }()
	blixard := func(unary bool) func(int) (target, error) {
		return func(conns int) (target, error) {
			return dialBlixard(ctx, filepath.Join(o.dir, "blixard", "s"), conns, unary)
		}
	}
	first, err := dialBlixard(ctx, filepath.Join(o.dir, "blixard", "s"), 1, true)
	if err != nil {
		return err
	}
	if err := errors.Join(first.prepare(ctx), first.close()); err != nil {
		return err
	}
	return measure(ctx, o, []contender{
		{"etcd", func(conns int) (target, error) { return dialEtcd(filepath.Join(o.dir, "etcd"), conns) }},
		{"blixard, a stream", blixard(false)},
		{"blixard, a call each", blixard(true)},
	})
}

// measure runs the rounds and prints the table.
func measure(ctx context.Context, o options, contenders []contender) error {
	fmt.Printf("acknowledged changes a second, %d bytes each, medians of %d rounds of %v, up to %d connections\n\n",
		valueBytes, o.rounds, o.length, o.conns)
	fmt.Printf("| clients | %s | %s | ratio | %s | ratio |\n|---:|---:|---:|---:|---:|---:|\n",
		contenders[0].name, contenders[1].name, contenders[2].name)
	for _, clients := range o.clients {
		rates := make([][]float64, len(contenders))
		for range o.rounds {
			for i, c := range contenders {
				if o.only != "" && o.only != c.name {
					rates[i] = append(rates[i], 0)
					continue
				}
				t, err := c.dial(min(o.conns, clients))
				if err != nil {
					return err
				}
				rate, err := load(ctx, t, clients, o.length)
				if err = errors.Join(err, t.close()); err != nil {
					return fmt.Errorf("%s with %d clients: %w", c.name, clients, err)
				}
				rates[i] = append(rates[i], rate)
			}
		}
		m := make([]float64, len(rates))
		for i, r := range rates {
			slices.Sort(r)
			m[i] = r[len(r)/2]
		}
		fmt.Printf("| %d | %.0f | %.0f | %.2f | %.0f | %.2f |\n", clients, m[0], m[1], m[1]/m[0], m[2], m[2]/m[0])
	}
	return nil
}
