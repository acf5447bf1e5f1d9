package state

import (
	"regexp"
	"testing"

	"pgregory.net/rapid"

	"github.com/blixard/blixard/internal/objectname"
)

func TestLevelOfNames(t *testing.T) {
	for text, want := range map[string]uint32{
		`create_vm {name: "web"}`: 1, `create_vm {name: "web" project: "shop"}`: 11, `create_vm {name: "shop/web" project: "shop"}`: 16,
		`delete_vm {name: "default/web"}`: 16, `label_vm {name: "shop/web"}`: 16, `rename_vm {name: "web" new_name: "shop/web"}`: 16,
		`submit_task {name: "sum" spec {after: "shop/part"}}`: 16, `change_tasks {name: "shop/sum"}`: 16,
		`create_group {name: "shop/crew"}`: 16, `change_group {name: "shop/crew"}`: 16, `update_group {name: "shop/crew"}`: 16, `delete_group {name: "shop/crew"}`: 16,
		`create_schedule {name: "shop/tick"}`: 16, `update_schedule {name: "shop/tick"}`: 16, `change_schedule {name: "shop/tick"}`: 16,
		`set_vm_desired {name: "shop/web"}`: 16, `update_vm {name: "shop/web"}`: 16, `move_vm {name: "shop/web"}`: 16,
		`put_image {image {name: "docker.io/library/busybox:1"}}`: 3,
	} {
		if got := Level(command(t, text)); got != want {
			t.Errorf("%s has level %d, want %d", text, got, want)
		}
	}
}

// While a member is too old to find web of project shop as shop/web, none does: all must come
// to the same.
func TestOldMembersFindNoOtherNames(t *testing.T) {
	for _, level := range []uint32{levelOfNames - 1, levelOfNames} {
		st := newStory()
		st.must(t, createA)
		member := form()
		member.GetFormCluster().Member.FeatureLevel = level
		if r := st.do(member); r.Problem != nil {
			t.Fatal(r.Problem)
		}
		if found := st.s.View().VM("default/a") != nil; found != (level == levelOfNames) {
			t.Errorf("with a member of level %d, another spelling is found: %v", level, found)
		}
		if r := st.do(command(t, `set_vm_desired {name: "default/a" desired: stop}`)); (r.Problem == nil) != (level == levelOfNames) {
			t.Errorf("with a member of level %d, a command by another spelling: %v", level, r.Problem)
		}
	}
}

// The volumes of replicas have names that volumes may have, and no two groups the same.
func TestNamesOfReplicaVolumes(t *testing.T) {
	valid := regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	word := rapid.StringMatching(`[ab]([-ab]{0,5}[ab])?`)
	longest := replicaVolume("aaaaaaaaaaaaaaaa", "p/"+"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", 999)
	if !valid.MatchString(longest) {
		t.Errorf("%q is no name of a volume", longest)
	}
	rapid.Check(t, func(t *rapid.T) {
		type of struct {
			template, group string
			ordinal         uint32
		}
		draw := func() of {
			return of{word.Draw(t, "template"), objectname.Full(rapid.SampledFrom([]string{"default", "a", "b", "a-b"}).Draw(t, "project"), word.Draw(t, "group")), rapid.Uint32Range(0, 12).Draw(t, "ordinal")}
		}
		x, y := draw(), draw()
		nameX, nameY := replicaVolume(x.template, x.group, x.ordinal), replicaVolume(y.template, y.group, y.ordinal)
		if !valid.MatchString(nameX) {
			t.Fatalf("%v has %q", x, nameX)
		}
		// Of two groups of project default the template and the group may run into each other,
		// as they always did.
		if x != y && nameX == nameY && (objectname.Qualified(x.group) || objectname.Qualified(y.group)) {
			t.Fatalf("%v and %v have %q", x, y, nameX)
		}
	})
}
