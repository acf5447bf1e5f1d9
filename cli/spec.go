package cli

import (
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/nearest"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

// specFlags are the flags that make a VM's spec.
type specFlags struct {
	cmd *cobra.Command

	image, name, workdir, hostname, kernel, project string
	cpus                                            uint32
	memory, disk                                    sizeFlag
	env, labels                                     []string
	restart, onNodeLoss                             string
	reschedules                                     uint32
	restartBackoff                                  durationFlag
	stdin, tty, remove                              bool

	publish, volumes, networks, files, secrets, sshKeys, envFiles []string
	user, initMode, userData, stopSignal                          string
	health                                                        healthFlags
	scheduling                                                    schedulingFlags
}

// healthFlags are the flags that make a check.
type healthFlags struct {
	cmd, http                    string
	tcp, retries                 uint32
	agent, keep                  bool
	interval, timeout, startTime durationFlag
}

func (s *specFlags) register(cmd *cobra.Command) {
	s.cmd = cmd
	f := cmd.Flags()
	f.StringVarP(&s.name, "name", "n", "", "name of the VM (default: chosen by the node)")
	f.Uint32VarP(&s.cpus, "cpus", "c", 1, "virtual CPUs")
	f.VarP(&s.memory, "memory", "m", "memory, such as 512MiB or 1.5GiB (default: 256MiB)")
	f.Var(&s.disk, "disk", "size of the writable root disk, such as 10GiB (default: 1GiB)")
	f.StringArrayVarP(&s.env, "env", "e", nil, "environment variable NAME=VALUE, or NAME to pass on this shell's; may be repeated")
	f.StringVarP(&s.workdir, "workdir", "w", "", "working directory of the command")
	f.StringVar(&s.hostname, "hostname", "", "host name in the guest (default: the VM's name)")
	f.StringVar(&s.kernel, "kernel", "", "kernel of the node's guest bundle (default: its preferred one)")
	f.StringVar(&s.restart, "restart", "", "start again when the command ended: always, on-failure or never, on-failure:5 for at most 5 times in ten minutes")
	f.Var(&s.restartBackoff, "restart-backoff", "wait before the first restart, doubled by each further one (default: 1s)")
	f.Uint32Var(&s.reschedules, "reschedules", 3, "when its node can't run it, try it on others so often in a row; 0: never")
	f.StringVar(&s.onNodeLoss, "on-node-loss", "", "when the node is lost: keep, replace or failover")
	f.StringArrayVarP(&s.labels, "label", "l", nil, "label KEY=VALUE; may be repeated")
	f.BoolVarP(&s.stdin, "interactive", "i", false, "keep the command's standard input open")
	f.BoolVarP(&s.tty, "tty", "t", false, "give the command a terminal")
	f.BoolVar(&s.remove, "rm", false, "delete the VM when its command ended")
	f.StringArrayVarP(&s.publish, "publish", "p", nil, "publish a port of the VM on every node: HOST:GUEST, with /udp for UDP; may be repeated")
	f.StringArrayVarP(&s.volumes, "volume", "v", nil, "attach a volume: NAME:PATH, with :ro to read only; may be repeated")
	f.StringArrayVar(&s.networks, "network", nil, "network of the VM, as NAME or NAME:ADDRESS, or none; may be repeated (default: the cluster's)")
	f.StringVarP(&s.user, "user", "u", "", "user the command runs as: NAME, UID, NAME:GROUP or UID:GID (default: the image's)")
	f.StringArrayVar(&s.envFiles, "env-file", nil, "file with lines NAME=VALUE; may be repeated")
	f.StringArrayVar(&s.files, "file", nil, "put a file of this host into the VM: FROM:PATH, with :MODE such as :0600; may be repeated")
	f.StringArrayVar(&s.secrets, "secret", nil, "give the VM a secret in a file in memory: NAME or NAME:PATH (default path: /run/secrets/NAME); may be repeated")
	f.StringArrayVar(&s.sshKeys, "ssh-key", nil, "file with public keys that may log in as root; may be repeated")
	f.StringVar(&s.userData, "user-data", "", "file with user data for cloud-init, of images that have it")
	f.StringVar(&s.initMode, "init", "", "what runs: automatic, command or system (the image's own init)")
	f.StringVar(&s.stopSignal, "stop-signal", "", "signal that a stop sends first, as name or number (default: the image's, or TERM)")
	f.StringVar(&s.health.cmd, "health-cmd", "", "check the VM by a shell command that must end with 0")
	f.StringVar(&s.health.http, "health-http", "", "check the VM by an HTTP request to PORT or PORT/PATH")
	f.Uint32Var(&s.health.tcp, "health-tcp", 0, "check the VM by connecting to that port")
	f.BoolVar(&s.health.agent, "health-agent", false, "check that the guest's agent answers")
	f.Var(&s.health.interval, "health-interval", "time between two checks (default: 10s)")
	f.Var(&s.health.timeout, "health-timeout", "time that a check may take (default: 5s)")
	f.Var(&s.health.startTime, "health-start-period", "time after the start in which failed checks do not count")
	f.Uint32Var(&s.health.retries, "health-retries", 0, "failed checks in a row that make the VM unhealthy (default: 3)")
	f.BoolVar(&s.health.keep, "health-keep", false, "do not restart the VM when it is unhealthy")
	s.scheduling.register(cmd)
	complete(cmd, "init", "automatic", "command", "system")
	complete(cmd, "restart", "always", "on-failure", "never")
	complete(cmd, "on-node-loss", "keep", "replace", "failover")
}

func complete(cmd *cobra.Command, flag string, words ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// request makes the request to create the VM. Limits that the API states are
// left to it, but for zeros: there they mean the default, and a person who typed
// one did not ask for that.
func (s *specFlags) request(command []string) (*blixardv1.CreateVMRequest, error) {
	if err := s.zeros(); err != nil {
		return nil, err
	}
	labels, err := parseLabels(s.labels)
	if err != nil {
		return nil, err
	}
	req := &blixardv1.CreateVMRequest{Name: s.name, Project: s.project, Labels: labels, Spec: &blixardv1.VMSpec{Image: s.image, Command: command}}
	return req, s.apply(req.GetSpec(), func(string) bool { return true })
}

// apply puts into spec what those flags say that are given.
func (s *specFlags) apply(spec *blixardv1.VMSpec, given func(flag string) bool) error {
	if err := s.applyMachine(spec, given); err != nil {
		return err
	}
	if given("env") || given("env-file") {
		env, err := parseEnvFiles(s.envFiles)
		if err != nil {
			return err
		}
		more, err := parseEnv(s.env)
		if err != nil {
			return err
		}
		spec.Env = append(env, more...)
	}
	if given("restart") || given("restart-backoff") {
		restart, err := s.restartPolicy()
		if err != nil {
			return err
		}
		spec.Restart = restart
	}
	if given("on-node-loss") {
		loss, err := nodeLoss(s.onNodeLoss)
		if err != nil {
			return err
		}
		spec.OnNodeLoss = loss
	}
	if err := s.scheduling.apply(spec, given); err != nil {
		return err
	}
	if err := s.applyGuest(spec, given); err != nil {
		return err
	}
	return s.applyAttached(spec, given)
}

// applyMachine is apply for the flags of the machine and its command.
func (s *specFlags) applyMachine(spec *blixardv1.VMSpec, given func(string) bool) error {
	memory := units.Size(s.memory).CeilMiB()
	if memory > 1<<32-1 {
		return usageError("--memory %s is too much", units.Size(s.memory)).WithHint("it must be from 64MiB to 1TiB")
	}
	set := func(flag string, f func()) {
		if given(flag) {
			f()
		}
	}
	set("cpus", func() { spec.Vcpus = s.cpus })
	set("memory", func() { spec.MemoryMib = uint32(memory) })
	set("disk", func() { spec.DiskBytes = uint64(s.disk) })
	set("workdir", func() { spec.WorkingDir = s.workdir })
	set("hostname", func() { spec.Hostname = s.hostname })
	set("kernel", func() { spec.Kernel = s.kernel })
	set("interactive", func() { spec.Stdin = s.stdin })
	set("tty", func() { spec.Tty = s.tty })
	if s.cmd.Flags().Changed("reschedules") {
		spec.Reschedules = &s.reschedules
	}
	set("rm", func() { spec.RemoveOnExit = s.remove })
	set("user", func() { spec.User = s.user })
	return nil
}

func (s *specFlags) zeros() error {
	var err error
	s.cmd.Flags().Visit(func(f *pflag.Flag) {
		switch {
		case f.Name == "cpus" && s.cpus == 0:
			err = usageError("--cpus is 0").WithHint("a VM has from 1 to 64 CPUs")
		case f.Name == "memory" && s.memory == 0:
			err = usageError("--memory is 0").WithHint("a VM has from 64MiB to 1TiB of memory")
		case f.Name == "disk" && s.disk == 0:
			err = usageError("--disk is 0").WithHint("a root disk has from 16MiB to 16TiB")
		case f.Name == "name" && s.name == "":
			err = usageError("--name is empty").WithHint("leave it out for a name chosen by the node")
		case f.Name == "project" && s.project == "":
			err = usageError("--project is empty").WithHint("leave it out, or write --project %s", defaultProject)
		}
	})
	return err
}

func parseEnv(list []string) ([]*blixardv1.EnvVar, error) {
	var env []*blixardv1.EnvVar
	for _, e := range list {
		name, value, given := strings.Cut(e, "=")
		if name == "" {
			return nil, usageError("-e %q has no name", e).WithHint("write -e NAME=VALUE")
		}
		if !given {
			var set bool
			if value, set = os.LookupEnv(name); !set {
				return nil, usageError("-e %s: this shell has no such variable", name).WithHint("write -e %s=VALUE", name)
			}
		}
		env = append(env, &blixardv1.EnvVar{Name: name, Value: value})
	}
	return env, nil
}

// envFileBytesMax bounds a file of variables.
const envFileBytesMax = 1 << 20

// parseEnvFiles reads lines NAME=VALUE; empty ones and those that begin with # are
// left out.
func parseEnvFiles(paths []string) ([]*blixardv1.EnvVar, error) {
	var env []*blixardv1.EnvVar
	for _, path := range paths {
		text, err := readSmall("--env-file", path, envFileBytesMax)
		if err != nil {
			return nil, err
		}
		for number, line := range strings.Split(string(text), "\n") {
			line = strings.TrimSuffix(line, "\r")
			if line == "" || line[0] == '#' {
				continue
			}
			one, err := parseEnv([]string{line})
			if err != nil {
				return nil, usageError("--env-file %s, line %d: %v", path, number+1, err).WithHint("write NAME=VALUE, a line each")
			}
			env = append(env, one...)
		}
	}
	return env, nil
}

func parseLabels(list []string) (map[string]string, error) {
	labels := map[string]string{}
	for _, l := range list {
		key, value, given := strings.Cut(l, "=")
		if key == "" || !given {
			return nil, usageError("label %q is not KEY=VALUE", l).WithHint("write --label tier=web")
		}
		labels[key] = value
	}
	return labels, nil
}

// parseLabelEdits takes KEY=VALUE for a label to set, and KEY- for one to drop; of several
// for one key the last counts.
func parseLabelEdits(edits []string) (set map[string]string, drop []string, err error) {
	set = map[string]string{}
	for _, e := range edits {
		if key, dash := strings.CutSuffix(e, "-"); dash && !strings.Contains(e, "=") {
			delete(set, key)
			drop = append(drop, key)
			continue
		}
		one, err := parseLabels([]string{e})
		if err != nil {
			return nil, nil, err
		}
		maps.Copy(set, one)
		drop = slices.DeleteFunc(drop, func(key string) bool { _, again := one[key]; return again })
	}
	return set, drop, nil
}

func (s *specFlags) restartPolicy() (*blixardv1.RestartPolicy, error) {
	if s.restart == "" && s.restartBackoff == 0 {
		return nil, nil
	}
	word, count, counted := strings.Cut(s.restart, ":")
	modes := map[string]blixardv1.RestartMode_Enum{
		"": blixardv1.RestartMode_unspecified, "always": blixardv1.RestartMode_always, "on-failure": blixardv1.RestartMode_on_failure,
		"on_failure": blixardv1.RestartMode_on_failure, "never": blixardv1.RestartMode_never, "no": blixardv1.RestartMode_never,
	}
	mode, ok := modes[word]
	if !ok {
		return nil, badWord("--restart", s.restart, "always", "on-failure", "never")
	}
	p := &blixardv1.RestartPolicy{Mode: mode}
	if counted {
		n, err := strconv.ParseUint(count, 10, 32)
		if err != nil || n == 0 || mode == blixardv1.RestartMode_never {
			return nil, usageError("--restart %s: the part behind the colon must be a number of restarts", s.restart).
				WithHint("write --restart on-failure:5")
		}
		p.MaxRestarts = uint32(n)
	}
	if s.restartBackoff > 0 {
		p.Backoff = durationpb.New(time.Duration(s.restartBackoff))
	}
	return p, nil
}

func nodeLoss(word string) (blixardv1.NodeLossPolicy_Enum, error) {
	if word == "" {
		return blixardv1.NodeLossPolicy_unspecified, nil
	}
	n, ok := blixardv1.NodeLossPolicy_Enum_value[word]
	if !ok || n == 0 {
		return 0, badWord("--on-node-loss", word, "keep", "replace", "failover")
	}
	return blixardv1.NodeLossPolicy_Enum(n), nil
}

func badWord(flag, word string, words ...string) *problem.Error {
	p := usageError("%s %q is not known", flag, word)
	if near := nearest.Of(word, words); near != "" {
		return p.WithHint("did you mean %s?", near)
	}
	return p.WithHint("it can be %s", strings.Join(words, ", "))
}

// commandLine takes apart "WORD [flags] [--] COMMAND...": flags may stand before
// WORD and behind it, up to "--" or the first word that is none. It is for
// commands whose flags are not interspersed. Without a WORD, as in
// "[flags] -- COMMAND", word is empty.
func commandLine(cmd *cobra.Command, args []string) (word string, command []string, err error) {
	if len(args) == 0 || cmd.ArgsLenAtDash() == 0 {
		return "", args, nil
	}
	f := cmd.Flags()
	if err := f.Parse(args[1:]); err != nil {
		return "", nil, flagError(cmd, err)
	}
	return args[0], f.Args(), nil
}

// askedForHelp is whether --help stood behind the first word, where cobra itself
// does not look.
func askedForHelp(cmd *cobra.Command) bool {
	help, err := cmd.Flags().GetBool("help")
	return err == nil && help
}
