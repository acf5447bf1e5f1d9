package objectname

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/blixard/blixard/internal/problem"
)

// TestSpellings: what a project and a name beside it come to.
func TestSpellings(t *testing.T) {
	for _, c := range []struct{ project, name, full, host string }{
		{"", "web", "web", "web"},
		{"default", "web", "web", "web"},
		{"", "default/web", "web", "web"},
		{"default", "default/web", "web", "web"},
		{"shop", "web", "shop/web", "web.shop"},
		{"", "shop/web", "shop/web", "web.shop"},
		{"shop", "shop/web", "shop/web", "web.shop"},
	} {
		full, err := Resolve(c.project, c.name)
		if err != nil || full != c.full || Host(full) != c.host {
			t.Errorf("project %q, name %q: %q, %q, %v; want %q, %q", c.project, c.name, full, Host(full), err, c.full, c.host)
		}
	}
	for _, c := range []struct{ project, name string }{{"other", "shop/web"}, {"default", "shop/web"}, {"shop", "default/web"}} {
		if full, err := Resolve(c.project, c.name); !problem.HasCode(err, "name.other_project") {
			t.Errorf("project %q, name %q: %q, %v", c.project, c.name, full, err)
		}
	}
}

// TestNamesComeBack: a full name and its parts say the same, and no two full names have the
// same host.
func TestNamesComeBack(t *testing.T) {
	name := rapid.StringMatching(`[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?`)
	rapid.Check(t, func(t *rapid.T) {
		draw := func(which string) string { return Full(name.Draw(t, "project"+which), name.Draw(t, "name"+which)) }
		a, b := draw("1"), draw("2")
		if Full(Split(a)) != a || Canonical(a) != a || Beside(a, Own(a)) != a {
			t.Fatalf("%q does not come back", a)
		}
		if full, err := Resolve(Project(a), Own(a)); err != nil || full != a {
			t.Fatalf("%q resolves to %q: %v", a, full, err)
		}
		if (a == b) != (Host(a) == Host(b)) {
			t.Fatalf("%q and %q have the hosts %q and %q", a, b, Host(a), Host(b))
		}
	})
}

func TestIDs(t *testing.T) {
	for text, want := range map[string]bool{
		"vm-abcdefghijklmnop": true, "task-abcdefghijklmnop-3-1": true, "group-abcdefghijklmnop": true, "schedule-abcdefghijklmnop": true,
		"vm-abc": false, "web": false, "shop/vm-abcdefghijklmnop": false,
	} {
		if IsID(text) != want {
			t.Errorf("%q: %v", text, !want)
		}
	}
}
