package constraint

import (
	"testing"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

func TestParseTaint(t *testing.T) {
	for text, want := range map[string]string{
		"gpu:evict": "gpu:evict", "gpu=yes:no-schedule": "gpu=yes:no-schedule", "a/b.c=1.2:evict": "a/b.c=1.2:evict",
	} {
		taint, err := ParseTaint(text)
		if err != nil || TaintText(taint) != want {
			t.Errorf("%q gives %v, %v", text, taint, err)
		}
	}
	for _, text := range []string{"", "gpu", "gpu=yes", "gpu:", "gpu:go", "gpu:no_schedule", "gpu=:evict", "=yes:evict", "-a:evict", "gpu=a b:evict", "gpu:evict:evict", "gpu:unspecified"} {
		if taint, err := ParseTaint(text); !problem.HasCode(err, "taint.text") {
			t.Errorf("%q is taken as %v, %v", text, taint, err)
		}
	}
}

func TestParseToleration(t *testing.T) {
	for _, text := range []string{"gpu", "gpu=yes", "gpu:evict", "gpu=yes:no-schedule"} {
		toleration, err := ParseToleration(text)
		if err != nil || TolerationText(toleration) != text {
			t.Errorf("%q gives %v, %v", text, toleration, err)
		}
	}
	for _, text := range []string{"", "gpu:", "gpu=", "gpu:go", "two words"} {
		if toleration, err := ParseToleration(text); !problem.HasCode(err, "toleration.text") {
			t.Errorf("%q is taken as %v, %v", text, toleration, err)
		}
	}
}

func TestUntolerated(t *testing.T) {
	for _, tc := range []struct {
		taints, tolerations []string
		least               blixardv1.TaintEffect_Enum
		want                string
	}{
		{nil, nil, 0, ""},
		{[]string{"gpu:no-schedule"}, nil, 0, "gpu:no-schedule"},
		{[]string{"gpu:no-schedule"}, []string{"gpu"}, 0, ""},
		{[]string{"gpu:no-schedule"}, []string{"gpu=yes"}, 0, "gpu:no-schedule"},
		{[]string{"gpu=yes:no-schedule"}, []string{"gpu=yes"}, 0, ""},
		{[]string{"gpu=yes:no-schedule"}, []string{"gpu=no", "other"}, 0, "gpu=yes:no-schedule"},
		{[]string{"gpu:evict"}, []string{"gpu:no-schedule"}, 0, "gpu:evict"},
		{[]string{"gpu:evict"}, []string{"gpu:evict"}, 0, ""},
		{[]string{"a:evict", "b:no-schedule"}, []string{"a"}, 0, "b:no-schedule"},
		{[]string{"a:no-schedule", "b:evict"}, nil, blixardv1.TaintEffect_evict, "b:evict"},
		{[]string{"a:no-schedule"}, nil, blixardv1.TaintEffect_evict, ""},
	} {
		var taints []*blixardv1.Taint
		for _, text := range tc.taints {
			one, err := ParseTaint(text)
			if err != nil {
				t.Fatal(err)
			}
			taints = append(taints, one)
		}
		s := &blixardv1.Scheduling{}
		for _, text := range tc.tolerations {
			one, err := ParseToleration(text)
			if err != nil {
				t.Fatal(err)
			}
			s.Tolerations = append(s.Tolerations, one)
		}
		got := ""
		if one := Untolerated(taints, s, tc.least); one != nil {
			got = TaintText(one)
		}
		if got != tc.want {
			t.Errorf("of %v, %v does not tolerate %q, want %q", tc.taints, tc.tolerations, got, tc.want)
		}
		if !SameTaints(taints, taints) || len(taints) > 0 && SameTaints(taints, nil) {
			t.Errorf("%v are not the same as themselves", tc.taints)
		}
	}
}
