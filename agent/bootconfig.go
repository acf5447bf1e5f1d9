package agent

import (
	"context"
	"path"
	"slices"
	"strconv"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/guest"
	"github.com/blixard/blixard/internal/objectname"
	"github.com/blixard/blixard/internal/problem"
)

// inits are the programs that boot a whole system.
var inits = []string{"init", "systemd", "openrc-init", "runit-init", "s6-svscan"}

// epochEnv tells the guest the epoch of its placement, so that what it writes to
// elsewhere can refuse an older one.
const epochEnv = "BLIXARD_EPOCH"

// bootConfig is what the guest is told to become. It is pure: networks and secrets
// are added by guestConfig.
func bootConfig(rec *blixardv1.AllocationRecord) (guest.BootConfig, error) {
	alloc, img := rec.GetAllocation(), rec.GetImage().GetConfig()
	spec := alloc.GetSpec()
	cfg := guest.BootConfig{
		Hostname:   firstOf(spec.GetHostname(), objectname.Own(alloc.GetVmName())),
		Argv:       argv(spec, img),
		Env:        environment(alloc, img),
		WorkDir:    firstOf(spec.GetWorkingDir(), img.GetWorkingDir()),
		User:       firstOf(spec.GetUser(), img.GetUser()),
		TTY:        spec.GetTty(),
		Stdin:      spec.GetStdin(),
		HoldOutput: spec.GetHoldOutput(),
		StopSignal: int(img.GetStopSignal()),
		Image:      guest.Disk{Device: "/dev/vda", FSType: firstOf(rec.GetImage().GetFsType(), "ext4")},
		Writable:   &guest.Disk{Device: "/dev/vdb", FSType: "ext4"},
		SSHKeys:    spec.GetSshKeys(),
		UserData:   spec.GetUserData(),
	}
	if spec.GetStopSignal() != 0 {
		cfg.StopSignal = int(spec.GetStopSignal())
	}
	for _, f := range spec.GetFiles() {
		cfg.Files = append(cfg.Files, guest.File{Path: f.GetPath(), Mode: f.GetMode(), UID: f.GetUid(), GID: f.GetGid(), Content: f.GetContent()})
	}
	for k, v := range alloc.GetVolumes() {
		cfg.Mounts = append(cfg.Mounts, guest.Mount{
			Disk: guest.Disk{Device: "serial:" + volumeSerial(k), FSType: "ext4"}, Path: v.GetPath(), ReadOnly: v.GetReadOnly(),
		})
	}
	cfg.Init = bootsSystem(spec, rec.GetImage(), cfg.Argv)
	if cfg.Init && spec.GetStopSignal() == 0 {
		cfg.StopSignal = 0 // images name the signal of their command, not of an init
	}
	if len(cfg.Argv) == 0 && !cfg.Init {
		return cfg, problem.New(problem.Invalid, "image.no_command", "image %q names no command to run", rec.GetImage().GetName()).
			WithHint("give one: blixard vm update %s -- COMMAND, or --init system for an image with an init", alloc.GetVmName())
	}
	return cfg, nil
}

// environment is the image's, under the owner's, under blixard's own: one entry a
// name, since programs differ in which of two they read.
func environment(alloc *blixardv1.Allocation, img *blixardv1.ImageConfig) []string {
	all := slices.Clone(img.GetEnv())
	for _, e := range alloc.GetSpec().GetEnv() {
		all = append(all, e.GetName()+"="+e.GetValue())
	}
	all = append(all, epochEnv+"="+strconv.FormatUint(alloc.GetEpoch(), 10))
	last := map[string]int{}
	for k, e := range all {
		name, _, _ := strings.Cut(e, "=")
		last[name] = k
	}
	env := make([]string, 0, len(last))
	for k, e := range all {
		if name, _, _ := strings.Cut(e, "="); last[name] == k {
			env = append(env, e)
		}
	}
	return env
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// argv is the image's entrypoint and command; a command of the spec replaces the
// latter.
func argv(spec *blixardv1.VMSpec, img *blixardv1.ImageConfig) []string {
	command := spec.GetCommand()
	if len(command) == 0 {
		command = img.GetCommand()
	}
	return slices.Concat(img.GetEntrypoint(), command)
}

// bootsSystem is whether the guest's process 1 is the image's own init.
func bootsSystem(spec *blixardv1.VMSpec, img *blixardv1.Image, argv []string) bool {
	switch spec.GetInit() {
	case blixardv1.InitMode_command:
		return false
	case blixardv1.InitMode_system:
		return true
	}
	if len(argv) == 0 {
		return img.GetSource() == "disk"
	}
	return slices.Contains(inits, path.Base(argv[0]))
}

// guestConfig is bootConfig with networks and secrets.
func (a *Agent) guestConfig(ctx context.Context, rec *blixardv1.AllocationRecord) (guest.BootConfig, error) {
	cfg, err := bootConfig(rec)
	if err != nil {
		return cfg, err
	}
	alloc := rec.GetAllocation()
	if err := a.cfg.Networks.Configure(alloc, &cfg); err != nil {
		return cfg, err
	}
	if len(alloc.GetSpec().GetSecrets()) == 0 {
		return cfg, nil
	}
	resp, err := a.cfg.Cluster.RevealSecrets(ctx, &blixardv1.RevealSecretsRequest{NodeId: a.cfg.NodeID, AllocationId: alloc.GetId()})
	if err != nil {
		return cfg, problem.From(err)
	}
	for _, s := range alloc.GetSpec().GetSecrets() {
		cfg.Secrets = append(cfg.Secrets, guest.File{
			Path: firstOf(s.GetPath(), guest.SecretsDir+"/"+s.GetSecret()), Mode: s.GetMode(), UID: s.GetUid(), GID: s.GetGid(),
			Content: resp.GetValues()[s.GetSecret()],
		})
	}
	return cfg, nil
}
