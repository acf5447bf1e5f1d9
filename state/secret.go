package state

import (
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// secretsMax of the cluster, of up to 64 KiB each: 64 MiB.
const secretsMax = 1024

func (b *batch) setSecret(c *blixardv1.SetSecretCommand) Result {
	if c.GetName() == "" || len(c.GetSealed()) == 0 {
		return refused(b.index, problem.New(problem.Invalid, "secret.incomplete", "a secret needs a name and a value"))
	}
	old := first[blixardv1.Secret](b.db, tableSecret, indexID, c.GetName())
	if old != nil && c.GetCreateOnly() {
		return refused(b.index, problem.New(problem.Conflict, "secret.exists", "there is a secret %q already", c.GetName()).
			WithHint("`blixard secret set` replaces it"))
	}
	if n := count[blixardv1.Secret](b.db, tableSecret); old == nil && n >= secretsMax {
		return refused(b.index, problem.New(problem.NoCapacity, "secret.too_many", "there are %d secrets", n).WithHint("delete those that are not used"))
	}
	s := &blixardv1.Secret{Name: c.GetName(), CreateIndex: b.index, CreatedAt: b.time}
	if old != nil {
		s = proto.CloneOf(old)
	}
	s.Sealed, s.SizeBytes, s.ChangedAt, s.ModifyIndex = c.GetSealed(), c.GetSizeBytes(), b.time, b.index
	insert(b.db, tableSecret, s)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindSecret, Secret: s})
	b.secretEvent(s, "secret.set", "the secret was set")
	return Result{Index: b.index, Secret: s}
}

func (b *batch) secretEvent(s *blixardv1.Secret, kind, message string) {
	b.event(&blixardv1.Event{Kind: kind, ObjectKind: "secret", ObjectId: s.GetName(), ObjectName: s.GetName(), Message: message})
}

func (b *batch) deleteSecret(c *blixardv1.DeleteSecretCommand) Result {
	old := first[blixardv1.Secret](b.db, tableSecret, indexID, c.GetName())
	if old == nil {
		return refused(b.index, secretNotFound(c.GetName()))
	}
	if vm := b.whoHas(func(vm *blixardv1.VM) bool {
		for _, s := range vm.GetSpec().GetSecrets() {
			if s.GetSecret() == c.GetName() {
				return true
			}
		}
		return false
	}); vm != nil {
		return refused(b.index, problem.New(problem.Conflict, "secret.in_use", "secret %q is in use by VM %q", c.GetName(), vm.GetName()).
			WithHint("delete that VM first, or update it without the secret"))
	}
	last := proto.CloneOf(old)
	last.ModifyIndex = b.index
	remove(b.db, tableSecret, old)
	b.s.changes = append(b.s.changes, Change{Index: b.index, Kind: KindSecret, Secret: last, Deleted: true})
	b.secretEvent(last, "secret.deleted", "the secret is gone")
	return Result{Index: b.index, Secret: last}
}

// whoHas gives a VM that is as asked, the first by name; nil when there is none.
func (b *batch) whoHas(is func(*blixardv1.VM) bool) *blixardv1.VM {
	var found *blixardv1.VM
	b.eachVM(func(vm *blixardv1.VM) {
		if (found == nil || vm.GetName() < found.GetName()) && is(vm) {
			found = vm
		}
	})
	return found
}

func secretNotFound(name string) *problem.Error {
	return problem.New(problem.NotFound, "secret.not_found", "there is no secret %q", name).
		WithHint("set it first: blixard secret set %s", name)
}

func (b *batch) secretsKnown(spec *blixardv1.VMSpec) *problem.Error {
	for i, s := range spec.GetSecrets() {
		if first[blixardv1.Secret](b.db, tableSecret, indexID, s.GetSecret()) == nil {
			return secretNotFound(s.GetSecret()).WithField("spec.secrets[%d].secret", i)
		}
	}
	return nil
}

// Secret finds a secret by its name, sealed; nil when there is none.
func (v *View) Secret(name string) *blixardv1.Secret {
	return first[blixardv1.Secret](v.db, tableSecret, indexID, name)
}

// Secrets gives all secrets, sealed, ordered by name.
func (v *View) Secrets() []*blixardv1.Secret {
	return every[blixardv1.Secret](v.db, tableSecret, indexID)
}
