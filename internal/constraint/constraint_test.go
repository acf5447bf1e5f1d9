package constraint

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"zone=a": "zone=a", " zone = a ": "zone=a", "zone!=a": "zone!=a", "disk in ssd, nvme": "disk in ssd,nvme",
		"disk  not  in hdd": "disk not in hdd", "node.version>=0.2": "node.version>=0.2", "v<=1": "v<=1", "v<1": "v<1", "v>1": "v>1",
		"gpu": "gpu", "!gpu": "!gpu", "! gpu": "!gpu", "inside=x": "inside=x", "a/b.c=1:2": "a/b.c=1:2",
	} {
		c, err := Parse(text)
		if err != nil || Text(c) != want || !Valid(c) {
			t.Errorf("%q gives %q, valid %v, %v; want %q", text, Text(c), Valid(c), err, want)
		}
	}
	for _, text := range []string{"", "=a", "zone=", "zone=a b", "zone==a", "two words", "zone in ", "zone in a,,b", "-x=a", "x=\x00", "!", "!!gpu"} {
		if c, err := Parse(text); !problem.HasCode(err, "constraint.text") {
			t.Errorf("%q is taken as %v, %v", text, c, err)
		}
	}
}

func TestMet(t *testing.T) {
	for _, tc := range []struct {
		text, value string
		has, want   bool
	}{
		{"zone=a", "a", true, true},
		{"zone=a", "b", true, false},
		{"zone=a", "", false, false},
		{"zone!=a", "b", true, true},
		{"zone!=a", "a", true, false},
		{"zone!=a", "", false, true},
		{"zone in a,b", "b", true, true},
		{"zone in a,b", "c", true, false},
		{"zone in a,b", "", false, false},
		{"zone not in a,b", "c", true, true},
		{"zone not in a,b", "a", true, false},
		{"zone not in a,b", "", false, true},
		{"v<2", "1", true, true},
		{"v<2", "10", true, false},
		{"v<2", "", false, false},
		{"v<=2", "2", true, true},
		{"v>0.9", "0.10", true, true},
		{"v>=6.1", "6.1.0-56-cloud-amd64", true, true},
		{"v>=6.2", "6.1.0-56-cloud-amd64", true, false},
		{"gpu", "", true, true},
		{"gpu", "", false, false},
		{"!gpu", "", false, true},
		{"!gpu", "x", true, false},
	} {
		c, err := Parse(tc.text)
		if err != nil {
			t.Fatal(err)
		}
		if got := Met(c, tc.value, tc.has); got != tc.want {
			t.Errorf("%s of %q (%v) is %v", tc.text, tc.value, tc.has, got)
		}
	}
	if Met(&blixardv1.Constraint{Key: "a"}, "a", true) || Valid(&blixardv1.Constraint{Key: "a"}) || Met(&blixardv1.Constraint{Key: "a", Operator: blixardv1.Operator_less}, "1", true) {
		t.Error("a constraint without an operator or a value is met")
	}
}

func TestContradict(t *testing.T) {
	for _, tc := range []struct {
		a, b string
		want bool
	}{
		{"z=a", "z=b", true},
		{"z=a", "z=a", false},
		{"z=a", "z!=a", true},
		{"z=a", "z in a,b", false},
		{"z=c", "z in a,b", true},
		{"z in a,b", "z not in a,b", true},
		{"z in a,b", "z not in a", false},
		{"z", "!z", true},
		{"z=a", "!z", true},
		{"z!=a", "!z", false},
		{"z=1", "z>=2", true},
		{"z<1", "z>2", false},
		{"z!=a", "z!=b", false},
	} {
		a, _ := Parse(tc.a)
		b, _ := Parse(tc.b)
		if Contradict(a, b) != tc.want || Contradict(b, a) != tc.want {
			t.Errorf("%s and %s: %v", tc.a, tc.b, !tc.want)
		}
	}
}

// Compare is an order.
func TestCompareIsAnOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		value := rapid.StringMatching(`[0-9a-c]{1,2}([.-][0-9a-c]{1,2}){0,2}`)
		a, b, c := value.Draw(t, "a"), value.Draw(t, "b"), value.Draw(t, "c")
		if Compare(a, b) != -Compare(b, a) || Compare(a, a) != 0 {
			t.Fatalf("%s and %s: %d and %d", a, b, Compare(a, b), Compare(b, a))
		}
		if Compare(a, b) <= 0 && Compare(b, c) <= 0 && Compare(a, c) > 0 {
			t.Fatalf("%s <= %s <= %s", a, b, c)
		}
	})
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"zone=a", "disk not in a,b", "!gpu", "x in in"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(Text(c))
		if err != nil || !proto.Equal(c, again) {
			t.Errorf("%q gives %q gives %v, %v", text, Text(c), again, err)
		}
	})
}

func TestIsLabel(t *testing.T) {
	for _, l := range [][2]string{{"zone", "a"}, {"a/b.c_d-e", "1.2:3"}, {"gpu", ""}} {
		if !IsLabel(l[0], l[1]) {
			t.Errorf("%v is no label", l)
		}
	}
	for _, l := range [][2]string{{"", "a"}, {"-a", "a"}, {"a", "-"}, {"a", "b c"}, {"a", strings.Repeat("b", 254)}} {
		if IsLabel(l[0], l[1]) {
			t.Errorf("%v is a label", l)
		}
	}
}

// The labels that people set win, and neither map is changed.
func TestLabels(t *testing.T) {
	n := &blixardv1.Node{Labels: map[string]string{"a": "2"}, Fingerprint: &blixardv1.NodeFingerprint{Labels: map[string]string{"a": "1", "b": "1"}}}
	if got := Labels(n); got["a"] != "2" || got["b"] != "1" || n.GetFingerprint().GetLabels()["a"] != "1" {
		t.Errorf("%v", got)
	}
	if got := Labels(&blixardv1.Node{Labels: n.GetLabels()}); got["a"] != "2" || len(got) != 1 {
		t.Errorf("%v", got)
	}
}
