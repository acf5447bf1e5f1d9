package cli

import (
	"errors"
	"strings"
	"testing"

	"github.com/blixard/blixard/internal/manifest"
	"github.com/blixard/blixard/internal/problem"
)

// Each field that the cluster names is told with its line, code and hint; what is about no
// field with the line of its object.
func TestProblemsNameLines(t *testing.T) {
	objects, err := manifest.Read("site.yaml", []byte("kind: VM\nname: web\nspec:\n  image: busybox\n  vcpus: 2\n---\nkind: VM\nname: db\nspec:\n  image: busybox\n  memoryMib: 512\n"))
	if err != nil {
		t.Fatal(err)
	}
	p := problem.New(problem.Invalid, "vm.test", "all of it").WithHint("100%% mended")
	both := p.WithViolations([]problem.Violation{{Field: "spec.vcpus", Message: "too many"}, {Field: "spec.memory_mib", Message: "too little"}})
	plain := errors.New("x")
	for name, tc := range map[string]struct {
		err  error
		want string
	}{
		"no field":   {about(objects[1], p), "site.yaml:7: all of it"},
		"one field":  {about(objects[0], p.WithField("spec.vcpus")), "site.yaml:5: spec.vcpus: all of it"},
		"two fields": {about(objects[0], both), "site.yaml:5: spec.vcpus: too many; site.yaml:3: spec.memory_mib: too little"},
		"no text":    {about(objects[0], p.WithViolations([]problem.Violation{{Field: "name"}})), "site.yaml:2: name: all of it"},
		"fields of two VMs": {aboutVMs(objects, p.WithViolations([]problem.Violation{
			{Field: "vms[1].spec.memory_mib", Message: "too little"}, {Field: "vms[0].spec", Message: "odd"}, {Field: "vms[1].name", Message: "taken"},
		})), "site.yaml:3: spec: odd; site.yaml:11: spec.memory_mib: too little; site.yaml:8: name: taken"},
		"no field of VMs": {aboutVMs(objects, p), "all of it"},
	} {
		var got []string
		for _, e := range leaves(tc.err) {
			of := problem.From(e)
			got = append(got, of.Error())
			if of.Kind != problem.Invalid || of.Code != "vm.test" || of.Hint != "100% mended" {
				t.Errorf("%s: %+v", name, of)
			}
		}
		if strings.Join(got, "; ") != tc.want {
			t.Errorf("%s: %s, want %s", name, strings.Join(got, "; "), tc.want)
		}
		if exitCode(tc.err) != exitCode(p) {
			t.Errorf("%s: exit code %d", name, exitCode(tc.err))
		}
	}
	if aboutVMs(objects, plain) != plain {
		t.Error("what is no problem of a field stays as it is")
	}
}
