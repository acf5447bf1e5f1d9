package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// serveEtcd is the child process: an etcd of one node with its defaults, fsync
// included. It tells on standard output when it is ready.
func serveEtcd(ctx context.Context, args []string) error {
	dir := args[0]
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(dir, "data")
	cfg.LogLevel = "fatal" // it logs its own shutdown as errors
	client := url.URL{Scheme: "unix", Path: filepath.Join(dir, "s")}
	peer := url.URL{Scheme: "unix", Path: filepath.Join(dir, "p")}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	return serve(ctx, cfg)
}

// serve runs an etcd until the parent lets go.
func serve(ctx context.Context, cfg *embed.Config) error {
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer e.Close()
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		return fmt.Errorf("etcd: %w", err)
	case <-ctx.Done():
		return ctx.Err()
	}
	fmt.Println("ready")
	return untilStdinEnds(ctx)
}

// untilStdinEnds waits for the parent to let go.
func untilStdinEnds(ctx context.Context) error {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var b [1]byte
		for {
			if _, err := os.Stdin.Read(b[:]); err != nil {
				return
			}
		}
	}()
	select {
	case <-ended:
	case <-ctx.Done():
	}
	return nil
}

// etcdTarget puts 256-byte values through etcd's own client.
type etcdTarget struct {
	conns []*clientv3.Client
}

// dialEtcd makes a connection of each config.
func dialEtcd(configs []clientv3.Config) (*etcdTarget, error) {
	t := &etcdTarget{}
	for _, cfg := range configs {
		c, err := clientv3.New(cfg)
		if err != nil {
			return nil, err
		}
		t.conns = append(t.conns, c)
	}
	return t, nil
}

// socketConfigs are of connections to the etcd of one node.
func socketConfigs(dir string, conns int) []clientv3.Config {
	return slices.Repeat([]clientv3.Config{{
		Endpoints:   []string{"unix://" + filepath.Join(dir, "s")},
		DialOptions: []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())},
		Logger:      zap.NewNop(),
	}}, conns)
}

func (t *etcdTarget) client(_ context.Context, i int) (change, error) {
	c := t.conns[i%len(t.conns)]
	return func(ctx context.Context, key int, value string) error {
		_, err := c.Put(ctx, keyName(key), value)
		return err
	}, nil
}

func (t *etcdTarget) close() error {
	for _, c := range t.conns {
		if err := c.Close(); err != nil {
			return err
		}
	}
	return nil
}
