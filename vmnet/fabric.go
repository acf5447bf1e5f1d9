package vmnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/vmnet/dns"
)

// Config says what a Fabric needs.
type Config struct {
	// StateDir is a directory of its own, for what must be known after a restart:
	// what the host's settings were, and what the rules look like when nobody
	// changed them.
	StateDir string
	// Prefix of the names of interfaces, one to five lower-case letters; "" means
	// "blx".
	Prefix string
	// Owner is the id of the node. Interfaces and tables of another owner are left
	// alone.
	Owner string
	// VXLANPort is the UDP port of the overlay, the same on every node; 0 means 4789.
	VXLANPort int
	// ResolvConf is the file that names the resolvers of the host; "" means
	// /etc/resolv.conf.
	ResolvConf string
	// Logger; nil means no log.
	Logger *slog.Logger
}

// The defaults of Config.
const (
	prefixDefault     = "blx"
	vxlanPortDefault  = 4789
	resolvConfDefault = "/etc/resolv.conf"
)

var (
	prefixPattern = regexp.MustCompile(`^[a-z]{1,5}$`)
	// ownerPattern: an owner is written into aliases and comments.
	ownerPattern = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)
)

// Fabric is the networking of one node. Its methods are safe for concurrent use;
// one works at a time.
type Fabric struct {
	config  Config
	planner planner
	log     *slog.Logger
	// makeTap is the maker of taps; tests attach guests by it.
	makeTap func(name, alias string, opts TapOptions) error
	// beforeLinux617 lets tests see a kernel that forwards IPv6 by all links or none.
	beforeLinux617 bool

	mu sync.Mutex
	// desired is the newest that Apply got, without ports that are not ours to have;
	// nil before the first.
	desired *Desired
	plan    planned
	record  record
	// listed are our tables of nftables when they were last read, and generation was
	// the number of the newest change of any rules before.
	listed     map[string]listing
	generation uint32
	// held are the published ports.
	held map[string]io.Closer
	// taps that were made, by name.
	taps     map[string]TapOptions
	problems map[string]error
	// services by the id of their network.
	services map[string]*service
	closed   bool

	resolvers *dns.Resolvers
	// gateways of all networks: no resolver is asked that is one.
	gateways atomic.Pointer[map[netip.Addr]bool]
}

// Open makes a Fabric. It changes nothing of the kernel.
func Open(c Config) (*Fabric, error) {
	c.Prefix = cmp.Or(c.Prefix, prefixDefault)
	c.VXLANPort = cmp.Or(c.VXLANPort, vxlanPortDefault)
	c.ResolvConf = cmp.Or(c.ResolvConf, resolvConfDefault)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case !prefixPattern.MatchString(c.Prefix):
		return nil, problem.New(problem.Invalid, "network.prefix", "%q is no prefix for interfaces", c.Prefix).
			WithHint("one to %d lower-case letters", prefixLettersMax)
	case !ownerPattern.MatchString(c.Owner):
		return nil, problem.New(problem.Invalid, "network.owner", "%q is no id of a node", c.Owner)
	case c.StateDir == "":
		return nil, problem.New(problem.Invalid, "network.state_dir", "no directory was given for the state of the network")
	}
	f := &Fabric{
		config: c, log: c.Logger, makeTap: makeTap,
		planner:  planner{names: names{prefix: c.Prefix, owner: c.Owner}, vxlanPort: c.VXLANPort},
		held:     map[string]io.Closer{},
		taps:     map[string]TapOptions{},
		problems: map[string]error{},
		services: map[string]*service{},
	}
	f.resolvers = &dns.Resolvers{File: c.ResolvConf, Own: f.ownGateway}
	var err error
	if f.record, err = readRecord(f.recordFile()); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *Fabric) recordFile() string { return filepath.Join(f.config.StateDir, "network.json") }

// Apply makes the node have what is desired, and nothing else of this owner. It is
// idempotent: what is there already is not touched. What can't be is left out and
// told by [Fabric.Problems]; the error is of what concerns all networks, after
// which Apply is to be called again.
func (f *Fabric) Apply(ctx context.Context, want Desired) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return problem.New(problem.Unavailable, "network.closed", "the network of the node was closed")
	}
	problems := map[string]error{}
	want.Ports = f.holdLocked(want.Ports, problems)
	f.desired = &want
	err := f.convergeLocked(ctx, problems)
	f.problems = problems
	for name, p := range problems {
		f.log.Warn("network is not as it should be", "network", name, "err", p)
	}
	return err
}

// Problems gives what could not be done in the newest Apply, by the name of the
// network, or "port 80/tcp" for a published port.
func (f *Fabric) Problems() map[string]error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.problems)
}

// holdLocked takes the ports and gives those that could be.
func (f *Fabric) holdLocked(ports []Port, problems map[string]error) []Port {
	var ours []Port
	for _, p := range ports {
		name := portName(p)
		if f.held[name] == nil {
			h, err := hold(p)
			if err != nil {
				problems[name] = err
				continue
			}
			f.held[name] = h
		}
		ours = append(ours, p)
	}
	return ours
}

// releaseLocked gives back the ports that are no longer published.
func (f *Fabric) releaseLocked(ports []Port) error {
	var errs []error
	for name, h := range f.held {
		if !slices.ContainsFunc(ports, func(p Port) bool { return portName(p) == name }) {
			errs = append(errs, h.Close())
			delete(f.held, name)
		}
	}
	return errors.Join(errs...)
}

// readLocked reads the kernel and plans.
func (f *Fabric) readLocked() (*kernel, planned, error) {
	have, err := readKernel(f.planner.names, f.desired.Underlay, f.record.before())
	if err != nil {
		return nil, planned{}, problem.New(problem.Internal, "network.read", "read the kernel's networks").WithCause(err)
	}
	for name, opts := range have.taps {
		f.taps[name] = opts
	}
	have.facts.forceForward6 = have.facts.forceForward6 && !f.beforeLinux617
	have.facts.overlayPortTaken = f.desired.Underlay.IsValid() && have.overlayPortTaken(f.planner.vxlanPort)
	return have, f.planner.plan(*f.desired, have.facts), nil
}

// convergeLocked makes the difference between plan and kernel disappear: first
// what goes, then the rules in one transaction, then what comes. So no port is
// ever without its rules.
func (f *Fabric) convergeLocked(ctx context.Context, problems map[string]error) error {
	have, plan, err := f.readLocked()
	if err != nil {
		return err
	}
	maps.Copy(problems, plan.problems)
	f.plan = plan
	todo := changes(plan.objects, have)
	if err := f.rememberLocked(todo, plan); err != nil {
		return err
	}
	names := plan.linkNames()
	var errs []error
	run := func(removes bool) {
		for _, c := range todo {
			if c.remove != removes || ctx.Err() != nil {
				continue
			}
			f.log.Debug("network changes", "what", c.what)
			err := c.do()
			if network, ok := names[c.link]; err != nil && ok {
				problems[network] = errors.Join(problems[network], problem.New(problem.Internal, "network.change_failed", "network %q", network).WithCause(err))
			} else if err != nil {
				errs = append(errs, err)
			}
		}
	}
	run(true)
	for name := range f.taps {
		if _, wanted := plan.objects.links[name]; !wanted {
			delete(f.taps, name)
		}
	}
	if err := f.convergeRulesLocked(ctx, plan.rules); err != nil {
		return errors.Join(append(errs, err)...)
	}
	run(false)
	errs = append(errs, f.serveLocked(plan, problems), ctx.Err(), f.releaseLocked(f.desired.Ports), f.restoreLocked(plan))
	if err := errors.Join(errs...); err != nil {
		return problem.New(problem.Internal, "network.change_failed", "change the kernel's networks").WithCause(err)
	}
	return nil
}

// linkNames gives the network of each link.
func (p planned) linkNames() map[string]string {
	names := map[string]string{}
	for _, np := range p.networks {
		names[np.bridge], names[np.overlay] = np.name, np.name
		for _, l := range np.local {
			names[l.tap] = np.name
		}
	}
	delete(names, "")
	return names
}

// tablesLocked gives what nftables has of our tables. Where nobody changed any rule
// since they were last listed, that is what was listed then.
func (f *Fabric) tablesLocked(ctx context.Context) (map[string]listing, error) {
	now := generation()
	if f.listed != nil && now != 0 && now == f.generation {
		return f.listed, nil
	}
	had, err := listTables(ctx, f.planner.table())
	if err != nil {
		return nil, problem.New(problem.Internal, "network.rules_unreadable", "read the rules").WithCause(err)
	}
	// A change in between is found by the number, which is then another one.
	f.listed, f.generation = had, now
	return had, nil
}

// convergeRulesLocked changes the rules unless they are what they were made.
func (f *Fabric) convergeRulesLocked(ctx context.Context, want tables) error {
	had, err := f.tablesLocked(ctx)
	if err != nil {
		return err
	}
	for id, l := range had {
		if l.owner != f.config.Owner {
			return problem.New(problem.Conflict, "network.owned_elsewhere", "the table %s of nftables belongs to %q", id, l.owner).
				WithHint("remove it with `nft delete table %s`, if no other blixard runs here", id)
		}
	}
	sum := ""
	if len(want) > 0 {
		sum = want.sum()
	}
	if f.record.Rules == sum && f.record.matches(had) {
		return nil
	}
	if len(want) == 0 {
		if err := deleteTables(ctx, had); err != nil {
			return problem.New(problem.Internal, "network.rules_refused", "remove the rules").WithCause(err)
		}
	} else if err := applyTables(ctx, want, had, f.record.made(had)); err != nil {
		return err
	}
	if had, err = f.tablesLocked(ctx); err != nil {
		return err
	}
	f.record.Rules, f.record.Made, f.record.Listings = sum, want.sources(), map[string]string{}
	for id, l := range had {
		f.record.Listings[id] = l.text
	}
	return f.record.write(f.recordFile())
}

// Tap makes the tap of a NIC for a VM that is about to start, as a port of its
// network's bridge and with its rules in place. It gives the tap's name and the
// MTU in bytes for the guest. A tap that is there with the same owner is used
// again.
func (f *Fabric) Tap(ctx context.Context, allocationID string, index int, opts TapOptions) (name string, mtu int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	np, l, err := f.nicLocked(allocationID, index)
	if err != nil {
		return "", 0, err
	}
	have, _, err := f.readLocked()
	if err != nil {
		return "", 0, err
	}
	is, there := have.taps[l.tap]
	if there && is != opts {
		if err := deleteLink(l.tap); err != nil {
			return "", 0, problem.New(problem.Internal, "network.tap_failed", "allocation %s: NIC %d", allocationID, index).WithCause(err)
		}
		there = false
	}
	// The rules come before the tap.
	if err := f.convergeRulesLocked(ctx, f.plan.rules); err != nil {
		return "", 0, err
	}
	if !there {
		alias := mark{owner: f.config.Owner, kind: kindTap, id: allocationID, index: index}.String()
		if err := f.makeTap(l.tap, alias, opts); err != nil {
			return "", 0, problem.New(problem.Internal, "network.tap_failed", "allocation %s: NIC %d", allocationID, index).WithCause(err)
		}
	}
	f.taps[l.tap] = opts
	if err := f.convergeLocked(ctx, map[string]error{}); err != nil {
		return "", 0, err
	}
	// What else is wrong with the network is no reason not to start; this is.
	if have, _, err = f.readLocked(); err != nil {
		return "", 0, err
	}
	for _, c := range changes(f.plan.objects, have) {
		if c.link == l.tap || c.link == np.bridge {
			return "", 0, problem.New(problem.Internal, "network.tap_failed", "allocation %s: NIC %d: %s", allocationID, index, c.what)
		}
	}
	return l.tap, np.mtu, nil
}

// nicLocked finds the plan of a NIC.
func (f *Fabric) nicLocked(allocationID string, index int) (netPlan, nicPlan, error) {
	for _, np := range f.plan.networks {
		for _, l := range np.local {
			if l.AllocationID == allocationID && l.Index == index {
				return np, l, nil
			}
		}
	}
	if f.desired != nil {
		for _, n := range f.desired.Networks {
			for _, e := range n.Local {
				if err := f.problems[n.Spec.GetName()]; err != nil && e.AllocationID == allocationID && e.Index == index {
					return netPlan{}, nicPlan{}, err
				}
			}
		}
	}
	return netPlan{}, nicPlan{}, problem.New(problem.NotFound, "network.nic_unknown", "allocation %s: NIC %d is in no network of this node", allocationID, index).
		WithHint("the node learns of it with its next state; try again")
}

// Untap removes the taps of an allocation, after its VM ended. Those that are not
// there are fine.
func (f *Fabric) Untap(allocationID string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	have, err := readKernel(f.planner.names, netip.Addr{}, f.record.before())
	if err != nil {
		return problem.New(problem.Internal, "network.read", "read the kernel's networks").WithCause(err)
	}
	var errs []error
	for name, l := range have.objects.links {
		if m, ok := parseMark(l.alias); ok && l.kind == kindTap && m.id == allocationID {
			errs = append(errs, deleteLink(name))
			delete(f.taps, name)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return problem.New(problem.Internal, "network.tap_failed", "allocation %s: remove its taps", allocationID).WithCause(err)
	}
	return nil
}

// Drift is a difference between what the node should have and what its kernel has.
type Drift struct {
	// What differs, in a sentence.
	What string
	// Mendable: Mend puts it right. Others are of something that is not ours.
	Mendable bool
}

// Check compares the kernel with what the newest Apply asked for.
func (f *Fabric) Check(ctx context.Context) ([]Drift, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.checkLocked(ctx)
}

func (f *Fabric) checkLocked(ctx context.Context) ([]Drift, error) {
	if f.desired == nil {
		return nil, problem.New(problem.Unavailable, "network.not_ready", "the node does not know yet what networks it shall have").WithHint("try again in a moment")
	}
	have, plan, err := f.readLocked()
	if err != nil {
		return nil, err
	}
	var drifts []Drift
	for _, c := range changes(plan.objects, have) {
		drifts = append(drifts, Drift{c.what, true})
	}
	for name := range sortedKeys(f.taps) {
		if _, wanted := plan.objects.links[name]; wanted && have.index[name] == 0 {
			drifts = append(drifts, Drift{fmt.Sprintf("tap %s is missing: its VM is cut off until it is started anew", name), true})
		}
	}
	had, err := f.tablesLocked(ctx)
	if err != nil {
		return nil, err
	}
	for id := range sortedKeys(f.record.Listings) {
		if l, there := had[id]; !there {
			drifts = append(drifts, Drift{fmt.Sprintf("nftables %s is missing", id), true})
		} else if l.text != f.record.Listings[id] {
			for _, what := range tableDrifts(id, f.record.Listings[id], l.text) {
				drifts = append(drifts, Drift{what, true})
			}
		}
	}
	strangers, err := f.strangersLocked(ctx)
	return append(drifts, strangers...), err
}

// Mend puts right what [Fabric.Check] finds and gives what it was.
func (f *Fabric) Mend(ctx context.Context) ([]Drift, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	drifts, err := f.checkLocked(ctx)
	if err != nil {
		return nil, err
	}
	for name := range sortedKeys(f.taps) {
		if l, wanted := f.plan.objects.links[name]; wanted {
			if _, err := indexOf(name, nil); err != nil {
				if err := f.makeTap(name, l.alias, f.taps[name]); err != nil {
					return drifts, problem.New(problem.Internal, "network.tap_failed", "make tap %s", name).WithCause(err)
				}
			}
		}
	}
	problems := map[string]error{}
	err = f.convergeLocked(ctx, problems)
	for _, name := range slices.Sorted(maps.Keys(problems)) {
		err = errors.Join(err, problems[name])
	}
	return drifts, err
}

// Close ends what runs in this process. What the kernel has stays, and so do the
// networks of running VMs.
func (f *Fabric) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return errors.Join(f.stopLocked(), f.releaseLocked(nil))
}

// Destroy removes everything of this owner from the kernel and closes the Fabric.
func (f *Fabric) Destroy(ctx context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.desired = &Desired{}
	err := f.convergeLocked(ctx, map[string]error{})
	f.closed = true
	return errors.Join(err, f.stopLocked(), f.releaseLocked(nil))
}

func isOurTable(name string) bool { return strings.HasPrefix(name, "blixard-") }
