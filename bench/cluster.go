package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	// members of each cluster.
	members = 3
	// toAll and toLeader are where clients connect.
	toAll    = "all"
	toLeader = "leader"
)

type clusterOptions struct {
	clients, readers []int
	rounds           int
	length           time.Duration
	dir              string
	conns            int
	to               string
	only             string
	program          string
}

func parseCluster(args []string) (clusterOptions, error) {
	var o clusterOptions
	set := flag.NewFlagSet("cluster", flag.ContinueOnError)
	clients := set.String("clients", "1,64,256", "numbers of clients that change; empty for none")
	readers := set.String("readers", "64", "numbers of clients that read; empty for none")
	set.IntVar(&o.rounds, "rounds", 6, "rounds for each number")
	seconds := set.Float64("seconds", 3, "length of a round")
	set.StringVar(&o.dir, "dir", "", "directory on the disk to measure; it must not be there yet")
	set.StringVar(&o.to, "to", toAll, "members that clients connect to: all or leader")
	set.StringVar(&o.only, "only", "", "the one contender to measure, by its name")
	set.StringVar(&o.program, "program", "bin/blixard", "the blixard to measure")
	set.IntVar(&o.conns, "conns", 2*members, "connections that the clients share, at most")
	if err := set.Parse(args); err != nil {
		return o, err
	}
	if o.to != toAll && o.to != toLeader {
		return o, fmt.Errorf("-to %q: all or leader", o.to)
	}
	o.length = time.Duration(*seconds * float64(time.Second))
	var err error
	if o.clients, err = numbers("-clients", *clients); err != nil {
		return o, err
	}
	o.readers, err = numbers("-readers", *readers)
	return o, err
}

// ends gives the members that the connections of one round go to, the leader's
// being 0. One client alone goes to another member each round.
func (o clusterOptions) ends(clients, round int) []int {
	ends := make([]int, min(o.conns, clients))
	if o.to == toAll {
		for i := range ends {
			ends[i] = (i + round) % members
		}
	}
	return ends
}

// clusters are the two sides, with three members each.
type clusters struct {
	etcd    *etcdCluster
	blixard *blixardCluster
}

func startClusters(ctx context.Context, o clusterOptions) (*clusters, error) {
	c := &clusters{}
	for _, side := range []string{"etcd", "blixard"} {
		if err := os.MkdirAll(filepath.Join(o.dir, side), 0o700); err != nil {
			return nil, err
		}
	}
	var err error
	if c.etcd, err = startEtcdCluster(ctx, os.Stderr, filepath.Join(o.dir, "etcd")); err == nil {
		c.blixard, err = startBlixardCluster(ctx, os.Stderr, o.program, filepath.Join(o.dir, "blixard"))
	}
	if err != nil {
		return nil, errors.Join(err, c.stop())
	}
	return c, nil
}

func (c *clusters) stop() error { return errors.Join(c.etcd.stop(), c.blixard.stop()) }

func cluster(ctx context.Context, args []string) (err error) {
	o, err := parseCluster(args)
	if err != nil {
		return err
	}
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp(".", "data-"); err != nil {
			return err
		}
	}
	if o.dir, err = filepath.Abs(o.dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	c, err := startClusters(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	if err := errors.Join(c.etcd.prepare(ctx), c.blixard.prepare(ctx)); err != nil {
		return err
	}
	fmt.Printf("Three members each, mTLS, %d rounds of %v in turns, medians; up to %d connections, to %s; milliseconds p50 / p99.\n",
		o.rounds, o.length, o.conns, o.to)
	if err := compare(ctx, o, fmt.Sprintf("acknowledged changes a second, %d bytes each", valueBytes), o.clients, []side{
		{"etcd", func(ends []int) (target, error) { return c.etcd.dial(ends) }},
		{"blixard, a stream", func(ends []int) (target, error) { return c.blixard.dial(ctx, ends, false) }},
		{"blixard, a call each", func(ends []int) (target, error) { return c.blixard.dial(ctx, ends, true) }},
	}); err != nil {
		return err
	}
	return compare(ctx, o, "linearizable reads a second", o.readers, []side{
		{"etcd", func(ends []int) (target, error) {
			t, err := c.etcd.dial(ends)
			return reads{t}, err
		}},
		{"blixard", func(ends []int) (target, error) {
			t, err := c.blixard.dial(ctx, ends, true)
			return reads{t}, err
		}},
	})
}

// reader is a target that can be read, too.
type reader interface {
	target
	readClient(i int) change
}

// reads is the reading half of a target.
type reads struct{ reader }

func (r reads) client(_ context.Context, i int) (change, error) { return r.readClient(i), nil }

// side is one contender of a comparison, dialled at the members of each
// connection.
type side struct {
	name string
	dial func(ends []int) (target, error)
}

// compare runs the rounds of one comparison and prints its table; the first side
// is what the others are held against.
func compare(ctx context.Context, o clusterOptions, what string, clients []int, sides []side) error {
	if o.only != "" {
		sides = slices.DeleteFunc(sides, func(s side) bool { return s.name != o.only })
	}
	if len(clients) == 0 || len(sides) == 0 {
		return nil
	}
	fmt.Printf("\n%s\n\n| clients |", what)
	rule := "|---:|"
	for i, s := range sides {
		fmt.Printf(" %s | ms |", s.name)
		rule += "---:|---:|"
		if i > 0 {
			fmt.Print(" ratio |")
			rule += "---:|"
		}
	}
	fmt.Printf("\n%s\n", rule)
	for _, n := range clients {
		outcomes := make([][]outcome, len(sides))
		for round := range o.rounds {
			for i, s := range sides {
				got, err := one(ctx, s, n, o.ends(n, round), o.length)
				if err != nil {
					return fmt.Errorf("%s with %d clients: %w", s.name, n, err)
				}
				outcomes[i] = append(outcomes[i], got)
			}
		}
		fmt.Println(row(n, outcomes))
	}
	return nil
}

func one(ctx context.Context, s side, clients int, ends []int, length time.Duration) (outcome, error) {
	t, err := s.dial(ends)
	if err != nil {
		return outcome{}, err
	}
	got, err := load(ctx, t, clients, length)
	return got, errors.Join(err, t.close())
}

func row(clients int, outcomes [][]outcome) string {
	line := &strings.Builder{}
	fmt.Fprintf(line, "| %d |", clients)
	first := 0.0
	for i, all := range outcomes {
		m := medians(all)
		fmt.Fprintf(line, " %.0f | %.2f / %.2f |", m.rate, ms(m.p50), ms(m.p99))
		if i == 0 {
			first = m.rate
			continue
		}
		fmt.Fprintf(line, " %.2f |", m.rate/first)
	}
	return line.String()
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
