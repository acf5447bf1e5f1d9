package state

import (
	"cmp"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/objectname"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
	"github.com/blixard/blixard/internal/units"
)

const (
	// DefaultProject is that of VMs that name none.
	DefaultProject = objectname.DefaultProject
	// quotasMax of the cluster, some 150 bytes each.
	quotasMax = 16384
)

// ProjectOf names the project of a VM.
func ProjectOf(vm *blixardv1.VM) string { return projectNamed(vm.GetProject()) }

// projectNamed is the project that is stored under a name.
func projectNamed(stored string) string {
	if stored == "" {
		return DefaultProject
	}
	return stored
}

// storedProject is how a VM keeps the name of its project. Older members keep none,
// and must come to the same bytes.
func storedProject(name string) string {
	if name == DefaultProject {
		return ""
	}
	return name
}

// bounded is one of what a quota bounds.
type bounded struct {
	// field of the API, word for people, and flag of `blixard quota set`.
	field, word, flag string
	// ofSpec: the spec of a VM says how much, in a field of the same name.
	ofSpec bool
	used   func(*blixardv1.ProjectUsage) *uint64
	limit  func(*blixardv1.QuotaLimits) **uint64
	text   func(uint64) string
}

func plain(n uint64) string { return strconv.FormatUint(n, 10) }

// everyBounded in the order in which a refusal looks at them.
var everyBounded = []bounded{
	{
		"vms", "VMs", "vms", false,
		func(u *blixardv1.ProjectUsage) *uint64 { return &u.Vms }, func(l *blixardv1.QuotaLimits) **uint64 { return &l.Vms }, plain,
	},
	{
		"vcpus", "vCPUs", "cpus", true,
		func(u *blixardv1.ProjectUsage) *uint64 { return &u.Vcpus }, func(l *blixardv1.QuotaLimits) **uint64 { return &l.Vcpus }, plain,
	},
	{
		"memory_mib", "memory", "memory", true,
		func(u *blixardv1.ProjectUsage) *uint64 { return &u.MemoryMib }, func(l *blixardv1.QuotaLimits) **uint64 { return &l.MemoryMib },
		func(n uint64) string { return (units.Size(n) * units.MiB).String() },
	},
	{
		"disk_bytes", "disk", "disk", true,
		func(u *blixardv1.ProjectUsage) *uint64 { return &u.DiskBytes }, func(l *blixardv1.QuotaLimits) **uint64 { return &l.DiskBytes },
		func(n uint64) string { return units.Size(n).String() },
	},
	{
		"addresses", "addresses", "addresses", false,
		func(u *blixardv1.ProjectUsage) *uint64 { return &u.Addresses }, func(l *blixardv1.QuotaLimits) **uint64 { return &l.Addresses }, plain,
	},
	{
		"tasks", "tasks", "tasks", false,
		func(u *blixardv1.ProjectUsage) *uint64 { return &u.Tasks }, func(l *blixardv1.QuotaLimits) **uint64 { return &l.Tasks }, plain,
	},
}

var (
	// diskBounded bounds the disks of VMs, and volumes.
	diskBounded = &everyBounded[3]
	// tasksBounded bounds tasks, of which VMs take none.
	tasksBounded = &everyBounded[5]
)

// takenBy is what a VM takes of its project's quota, from its declaration until it is
// gone; nothing for nil. 1,000,000 VMs with the largest root disk are 2^64 bytes less a
// twentieth, so sums fit.
func takenBy(vm *blixardv1.VM) *blixardv1.ProjectUsage {
	if vm == nil {
		return &blixardv1.ProjectUsage{}
	}
	u := &blixardv1.ProjectUsage{
		Project: ProjectOf(vm), Vms: 1, Vcpus: uint64(vm.GetSpec().GetVcpus()),
		MemoryMib: uint64(vm.GetSpec().GetMemoryMib()), DiskBytes: vm.GetSpec().GetDiskBytes(),
	}
	for _, i := range vm.GetInterfaces() {
		if i.GetIpv4() != "" {
			u.Addresses++
		}
	}
	return u
}

// levelOfVolumeQuota is the first at which volumes count to the quota of their project.
const levelOfVolumeQuota = 20

// recountVolume is recount for a volume.
func recountVolume(db *database, after, before *blixardv1.Volume) {
	next := proto.CloneOf(usage(db, projectNamed(cmp.Or(after.GetProject(), before.GetProject()))))
	next.DiskBytes += after.GetSizeBytes() - before.GetSizeBytes()
	putUsage(db, next)
}

// recountVolumes counts all volumes to their projects from now on, or none of them.
func recountVolumes(db *database, count bool) {
	each(db, tableVolume, func(v *blixardv1.Volume) {
		if count {
			recountVolume(db, v, nil)
		} else {
			recountVolume(db, nil, v)
		}
	})
}

// usage of a project, shared and read-only.
func usage(db *database, project string) *blixardv1.ProjectUsage {
	if u := first[blixardv1.ProjectUsage](db, tableUsage, indexID, project); u != nil {
		return u
	}
	return &blixardv1.ProjectUsage{Project: project}
}

// recount gives a project what a VM takes after a change, in place of what it took
// before; either may be nil.
//
// Invariant: the usages are exactly the sums of takenBy over the VMs of each project, the
// sizes of its volumes, and the number of its tasks that are not finished.
func recount(db *database, after, before *blixardv1.VM) {
	vm := after
	if vm == nil {
		vm = before
	}
	next := proto.CloneOf(usage(db, ProjectOf(vm)))
	more, less := takenBy(after), takenBy(before)
	for _, r := range everyBounded {
		*r.used(next) += *r.used(more) - *r.used(less)
	}
	putUsage(db, next)
}

func putUsage(db *database, u *blixardv1.ProjectUsage) {
	if u.GetVms() == 0 && u.GetTasks() == 0 && u.GetDiskBytes() == 0 {
		remove(db, tableUsage, u)
		return
	}
	insert(db, tableUsage, u)
}

// openTasks is 1 for a task that is not finished; nil is none.
func openTasks(t *blixardv1.Task) uint64 {
	if t == nil || Finished(t.GetStatus().GetState()) {
		return 0
	}
	return 1
}

// recountTask is recount for a task.
func recountTask(db *database, after, before *blixardv1.Task) {
	more, less := openTasks(after), openTasks(before)
	if more == less {
		return
	}
	next := proto.CloneOf(usage(db, projectNamed(cmp.Or(after.GetProject(), before.GetProject()))))
	next.Tasks += more - less
	putUsage(db, next)
}

// quotaAllowsTasks says why a project, as it is stored, can't have so many more tasks that
// are not finished, once others of them are; nil when it can.
func (b *batch) quotaAllowsTasks(stored string, more, fewer uint64) *problem.Error {
	q := b.Quota(projectNamed(stored))
	if q == nil || planted.Is(planted.TaskQuotaNotChecked) {
		return nil
	}
	has, limit := usage(b.db, q.GetProject()).GetTasks(), q.GetLimits().Tasks
	if limit == nil || more <= fewer || has-fewer+more <= *limit {
		return nil
	}
	return exceeded(q, tasksBounded, *limit, has, more-fewer).
		WithHint("`blixard quota usage %s` shows what it has; wait for tasks of it, cancel some, or raise the quota: blixard quota set %s --tasks %d", q.GetProject(), q.GetProject(), has-fewer+more)
}

// quotas is the state, or what becomes of it.
type quotas interface {
	leveled
	Quota(project string) *blixardv1.Quota
	database() *database
}

// quotaAllowsDisk says why a project, as it is stored, can't have so many more bytes of
// volumes; nil when it can.
func quotaAllowsDisk(of quotas, stored string, more uint64) *problem.Error {
	q := of.Quota(projectNamed(stored))
	if q == nil || planted.Is(planted.QuotaNotChecked) || of.FeatureLevel() < levelOfVolumeQuota {
		return nil
	}
	has, limit := usage(of.database(), q.GetProject()).GetDiskBytes(), q.GetLimits().DiskBytes
	if limit == nil || has+more <= *limit && has+more >= has {
		return nil
	}
	return exceeded(q, diskBounded, *limit, has, more).
		WithHint("`blixard quota usage %s` shows what it has; delete volumes and VMs of it, or raise the quota: blixard quota set %s --disk %s",
			q.GetProject(), q.GetProject(), diskBounded.text(has+more))
}

// CheckVolumeQuota refuses to make a volume of a project so much larger than its quota has
// room for.
func (v *View) CheckVolumeQuota(project string, more uint64) error {
	if why := quotaAllowsDisk(v, project, more); why != nil {
		return why
	}
	return nil
}

func (v *View) database() *database { return v.db }

func (b *batch) database() *database { return b.db }

// Quota as in [View.Quota].
func (b *batch) Quota(project string) *blixardv1.Quota {
	return first[blixardv1.Quota](b.db, tableQuota, indexID, project)
}

func exceeded(q *blixardv1.Quota, r *bounded, limit, has, more uint64) *problem.Error {
	return problem.New(problem.NoCapacity, "quota.exceeded", "project %q would exceed its quota of %s: limit %s, in use %s, wanted %s more",
		q.GetProject(), r.word, r.text(limit), r.text(has), r.text(more))
}

// quotaAllows says why a VM can't take what it shall, with so many bytes of volumes that
// are made for it; nil when it can. What it takes no more of than before is not looked at: a
// project over its quota can still be changed.
func (b *batch) quotaAllows(vm, old *blixardv1.VM, volumes uint64) *problem.Error {
	q := b.Quota(ProjectOf(vm))
	if q == nil || planted.Is(planted.QuotaNotChecked) {
		return nil
	}
	used, want, had := usage(b.db, q.GetProject()), takenBy(vm), takenBy(old)
	want.DiskBytes += volumes
	for _, r := range everyBounded {
		limit := *r.limit(q.GetLimits())
		has, before, after := *r.used(used), *r.used(had), *r.used(want)
		if limit == nil || after <= before || has-before+after <= *limit {
			continue
		}
		why := exceeded(q, &r, *limit, has, after-before).
			WithHint("`blixard quota usage %s` shows what it has; delete VMs and volumes of it, or raise the quota: blixard quota set %s --%s %s",
				q.GetProject(), q.GetProject(), r.flag, r.text(has-before+after))
		if r.ofSpec {
			why = why.WithField("spec.%s", r.field)
		}
		return why
	}
	return nil
}

func (b *batch) quotaEvent(q *blixardv1.Quota, kind, message string) {
	b.event(&blixardv1.Event{Kind: kind, ObjectKind: "quota", ObjectId: q.GetProject(), ObjectName: q.GetProject(), Message: message})
}

// asExpected compares a quota, which may be nil, with what a change expects of it.
func asExpected(q *blixardv1.Quota, project string, expected uint64) *problem.Error {
	switch {
	case expected == 0 || expected == q.GetModifyIndex():
		return nil
	case q == nil:
		return QuotaNotFound(project)
	}
	return problem.New(problem.Conflict, "quota.index_mismatch", "the quota of project %q was changed at index %d, not %d",
		project, q.GetModifyIndex(), expected).WithHint("read the quota again and repeat the change with its modify_index")
}

func (b *batch) setQuota(c *blixardv1.SetQuotaCommand) Result {
	if c.GetProject() == "" {
		return refused(b.index, problem.New(problem.Invalid, "quota.incomplete", "a quota needs a project").WithHint("name the project"))
	}
	old := b.Quota(c.GetProject())
	if p := asExpected(old, c.GetProject(), c.GetExpectedIndex()); p != nil {
		return refused(b.index, p)
	}
	q := &blixardv1.Quota{Project: c.GetProject(), Limits: &blixardv1.QuotaLimits{}, CreateIndex: b.index, CreatedAt: b.time}
	if old != nil {
		q = proto.CloneOf(old)
	} else if n := count[blixardv1.Quota](b.db, tableQuota); n >= quotasMax {
		return refused(b.index, problem.New(problem.NoCapacity, "quota.too_many", "there are %d quotas", n).WithHint("remove those that are not needed"))
	}
	for _, r := range everyBounded {
		limit := *r.limit(q.Limits)
		if set := c.GetLimits(); set != nil && *r.limit(set) != nil {
			limit = *r.limit(set)
		}
		if limit != nil && *limit == 0 {
			limit = nil
		}
		*r.limit(q.Limits) = limit
	}
	if old != nil && proto.Equal(q.GetLimits(), old.GetLimits()) {
		return Result{Index: b.index, Quota: old}
	}
	q.ChangedAt, q.ModifyIndex = b.time, b.index
	insert(b.db, tableQuota, q)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindQuota, Quota: q})
	b.quotaEvent(q, "quota.set", "the quota was set")
	return Result{Index: b.index, Quota: q}
}

func (b *batch) removeQuota(c *blixardv1.RemoveQuotaCommand) Result {
	old := b.Quota(c.GetProject())
	if old == nil {
		return refused(b.index, QuotaNotFound(c.GetProject()))
	}
	if p := asExpected(old, c.GetProject(), c.GetExpectedIndex()); p != nil {
		return refused(b.index, p)
	}
	last := proto.CloneOf(old)
	last.ModifyIndex = b.index
	remove(b.db, tableQuota, old)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindQuota, Quota: last, Deleted: true})
	b.quotaEvent(last, "quota.removed", "the quota is gone")
	return Result{Index: b.index, Quota: last}
}

// QuotaNotFound is the problem of a project without a quota.
func QuotaNotFound(project string) *problem.Error {
	return problem.New(problem.NotFound, "quota.not_found", "project %q has no quota", project).
		WithHint("`blixard quota list` shows the quotas; set one with `blixard quota set %s --vms N`", project)
}

// Quota of a project; nil when it has none.
func (v *View) Quota(project string) *blixardv1.Quota {
	return first[blixardv1.Quota](v.db, tableQuota, indexID, project)
}

// Quotas gives all quotas, ordered by project.
func (v *View) Quotas() []*blixardv1.Quota {
	return every[blixardv1.Quota](v.db, tableQuota, indexID)
}

// ProjectUsage tells what a project has beside its limits; all is 0 for one that
// nobody named.
func (v *View) ProjectUsage(project string) *blixardv1.ProjectUsage {
	db := v.db
	u := proto.CloneOf(usage(db, project))
	q := first[blixardv1.Quota](db, tableQuota, indexID, project)
	if q == nil {
		return u
	}
	u.Limits = q.GetLimits()
	for _, r := range everyBounded {
		if limit := *r.limit(u.Limits); limit != nil && *r.used(u) > *limit {
			u.Over = append(u.Over, r.field)
		}
	}
	return u
}

// ProjectUsages is ProjectUsage for the projects with a VM, a volume, a task or a quota whose name comes
// after the given one, in the order of names, at most limit of them; a limit of 0 or
// less means all.
func (v *View) ProjectUsages(after string, limit int) []*blixardv1.ProjectUsage {
	db := v.db
	var names []string
	for _, u := range listAfter[blixardv1.ProjectUsage](db, tableUsage, indexID, after, limit) {
		names = append(names, u.GetProject())
	}
	for _, q := range listAfter[blixardv1.Quota](db, tableQuota, indexID, after, limit) {
		names = append(names, q.GetProject())
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if limit > 0 && len(names) > limit {
		names = names[:limit]
	}
	usages := make([]*blixardv1.ProjectUsage, 0, len(names))
	for _, name := range names {
		usages = append(usages, v.ProjectUsage(name))
	}
	return usages
}
