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

	"github.com/blixard/blixard/client"
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

// outcome of one round.
type outcome struct {
	rate     float64 // a second
	p50, p99 time.Duration
}

// medians of the rounds, each figure by itself.
func medians(all []outcome) outcome {
	middle := func(of func(outcome) float64) float64 {
		var values []float64
		for _, o := range all {
			values = append(values, of(o))
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	return outcome{
		rate: middle(func(o outcome) float64 { return o.rate }),
		p50:  time.Duration(middle(func(o outcome) float64 { return float64(o.p50) })),
		p99:  time.Duration(middle(func(o outcome) float64 { return float64(o.p99) })),
	}
}

// load runs clients for a while.
func load(ctx context.Context, t target, clients int, length time.Duration) (outcome, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var stop atomic.Bool
	var running sync.WaitGroup
	errs := make(chan error, clients)
	took := make([][]time.Duration, clients)
	began := time.Now()
	for i := range clients {
		do, err := t.client(ctx, i)
		if err != nil {
			return outcome{}, err
		}
		running.Go(func() {
			r := mathrand.New(mathrand.NewPCG(uint64(i), uint64(began.UnixNano())))
			space := make([]byte, valueBytes)
			for !stop.Load() {
				key, v := r.IntN(keys), value(r, space)
				start := time.Now()
				if err := do(ctx, key, v); err != nil {
					errs <- err
					return
				}
				took[i] = append(took[i], time.Since(start))
			}
		})
	}
	began = time.Now()
	time.Sleep(length)
	stop.Store(true)
	running.Wait()
	whole := time.Since(began)
	select {
	case err := <-errs:
		return outcome{}, err
	default:
	}
	all := slices.Concat(took...)
	if len(all) == 0 {
		return outcome{}, errors.New("nothing was done in the time")
	}
	slices.Sort(all)
	return outcome{rate: float64(len(all)) / whole.Seconds(), p50: all[len(all)/2], p99: all[len(all)*99/100]}, nil
}

// fill gives every key a value.
func fill(ctx context.Context, t target) error {
	do, err := t.client(ctx, 0)
	if err != nil {
		return err
	}
	r, space := mathrand.New(mathrand.NewPCG(1, 1)), make([]byte, valueBytes)
	for key := range keys {
		if err := do(ctx, key, value(r, space)); err != nil {
			return err
		}
	}
	return nil
}

// numbers reads a list with commas.
func numbers(name, list string) (all []int, err error) {
	for f := range strings.SplitSeq(list, ",") {
		if f == "" {
			continue
		}
		n, err := strconv.Atoi(f)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%s: %q is no number of clients", name, f)
		}
		all = append(all, n)
	}
	return all, nil
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
	var err error
	o.clients, err = numbers("-clients", *clients)
	return o, err
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
	socket := []client.Config{{Addr: "unix:" + node.socket}}
	blixard := func(unary bool) func(int) (target, error) {
		return func(conns int) (target, error) {
			return dialBlixard(ctx, slices.Repeat(socket, conns), unary)
		}
	}
	first, err := dialBlixard(ctx, socket, true)
	if err != nil {
		return err
	}
	if err := errors.Join(first.prepare(ctx), first.close()); err != nil {
		return err
	}
	return measure(ctx, o, []contender{
		{"etcd", func(conns int) (target, error) { return dialEtcd(socketConfigs(filepath.Join(o.dir, "etcd"), conns)) }},
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
		outcomes := make([][]outcome, len(contenders))
		for range o.rounds {
			for i, c := range contenders {
				if o.only != "" && o.only != c.name {
					outcomes[i] = append(outcomes[i], outcome{})
					continue
				}
				t, err := c.dial(min(o.conns, clients))
				if err != nil {
					return err
				}
				got, err := load(ctx, t, clients, o.length)
				if err = errors.Join(err, t.close()); err != nil {
					return fmt.Errorf("%s with %d clients: %w", c.name, clients, err)
				}
				outcomes[i] = append(outcomes[i], got)
			}
		}
		m := make([]float64, len(outcomes))
		for i, all := range outcomes {
			m[i] = medians(all).rate
		}
		fmt.Printf("| %d | %.0f | %.0f | %.2f | %.0f | %.2f |\n", clients, m[0], m[1], m[1]/m[0], m[2], m[2]/m[0])
	}
	return nil
}
