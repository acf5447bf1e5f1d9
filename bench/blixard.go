package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/client"
)

// daemonChild is a blixard node in the background.
type daemonChild struct{ program, socket string }

// startDaemon runs the node as people do: its own program, its defaults.
func startDaemon(ctx context.Context, out io.Writer, program, dir string) (*daemonChild, error) {
	d := &daemonChild{program: program, socket: filepath.Join(dir, "s")}
	err := d.run(ctx, out, "node", "start", "--detach", "--data-dir", filepath.Join(dir, "data"), "--socket", d.socket, "--bind", "127.0.0.1:0")
	return d, err
}

func (d *daemonChild) run(ctx context.Context, out io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, d.program, args...)
	cmd.Stderr = out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s %v: %w", d.program, args, err)
	}
	return nil
}

// stop ends the node also after an interrupt.
func (d *daemonChild) stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	return d.run(ctx, os.Stderr, "--addr", "unix:"+d.socket, "node", "stop")
}

// blixardTarget labels VMs over its API.
type blixardTarget struct {
	conns  []*client.Client
	labels []*client.Labels // one for each connection, unless unary
}

// dialBlixard makes a connection of each config.
func dialBlixard(ctx context.Context, configs []client.Config, unary bool) (*blixardTarget, error) {
	t := &blixardTarget{}
	for _, cfg := range configs {
		c, err := client.Dial(ctx, cfg)
		if err != nil {
			return nil, err
		}
		t.conns = append(t.conns, c)
		if unary {
			continue
		}
		l, err := c.Labels(ctx)
		if err != nil {
			return nil, err
		}
		t.labels = append(t.labels, l)
	}
	return t, nil
}

// prepare declares the VMs whose labels change. They shall not run.
func (t *blixardTarget) prepare(ctx context.Context) error {
	vms := t.conns[0].VMs()
	for i := range keys {
		_, err := vms.CreateVM(ctx, &blixardv1.CreateVMRequest{
			IdempotencyKey: fmt.Sprintf("create-%d", i), Name: keyName(i),
			Spec: &blixardv1.VMSpec{Image: "busybox", Desired: blixardv1.DesiredState_stop},
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *blixardTarget) client(_ context.Context, i int) (change, error) {
	label := func(ctx context.Context, req *blixardv1.LabelVMRequest) error {
		_, err := t.conns[i%len(t.conns)].VMs().LabelVM(ctx, req)
		return err
	}
	if len(t.labels) > 0 {
		label = func(ctx context.Context, req *blixardv1.LabelVMRequest) error {
			_, err := t.labels[i%len(t.labels)].Label(ctx, req)
			return err
		}
	}
	n, session := uint64(0), sessions.Add(1)
	return func(ctx context.Context, key int, value string) error {
		n++
		return label(ctx, &blixardv1.LabelVMRequest{
			IdempotencyKey: idempotencyKey(session, n), Name: keyName(key), Labels: map[string]string{"value": value},
		})
	}, nil
}

func (t *blixardTarget) close() (err error) {
	for _, l := range t.labels {
		err = errors.Join(err, l.Close())
	}
	for _, c := range t.conns {
		err = errors.Join(err, c.Close())
	}
	return err
}
