package constraint

import (
	"cmp"
	"regexp"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// PoolLabel is the label of a node that says to which pool it belongs.
const PoolLabel = "pool"

const (
	taintSpelling      = "write gpu=yes:no-schedule, gpu:evict, or gpu- to remove it"
	tolerationSpelling = "write gpu, gpu=yes, or gpu=yes:evict for that effect alone"
)

// taintValue leaves out the colon, which parts value and effect.
var taintValue = regexp.MustCompile(`^([A-Za-z0-9][-A-Za-z0-9_.]{0,62})?$`)

var effects = map[string]blixardv1.TaintEffect_Enum{
	"no-schedule": blixardv1.TaintEffect_no_schedule, "evict": blixardv1.TaintEffect_evict,
}

// EffectText gives the word that people write.
func EffectText(e blixardv1.TaintEffect_Enum) string {
	return strings.ReplaceAll(e.String(), "_", "-")
}

// ParseTaint reads KEY[=VALUE]:EFFECT. It fails with a problem of kind Invalid and code
// taint.text.
func ParseTaint(text string) (*blixardv1.Taint, error) {
	key, value, effect, ok := taintParts(text)
	if !ok || effect == blixardv1.TaintEffect_unspecified {
		return nil, problem.New(problem.Invalid, "taint.text", "%q is no taint", text).WithHint(taintSpelling)
	}
	return &blixardv1.Taint{Key: key, Value: value, Effect: effect}, nil
}

// ParseToleration reads KEY[=VALUE][:EFFECT]. It fails with a problem of kind Invalid and
// code toleration.text.
func ParseToleration(text string) (*blixardv1.Toleration, error) {
	key, value, effect, ok := taintParts(text)
	if !ok {
		return nil, problem.New(problem.Invalid, "toleration.text", "%q is no toleration", text).WithHint(tolerationSpelling)
	}
	return &blixardv1.Toleration{Key: key, Value: value, Effect: effect}, nil
}

func taintParts(text string) (key, value string, effect blixardv1.TaintEffect_Enum, ok bool) {
	rest, word, has := strings.Cut(text, ":")
	if has {
		if effect, ok = effects[word]; !ok {
			return "", "", 0, false
		}
	}
	key, value, given := strings.Cut(rest, "=")
	return key, value, effect, IsTaint(key, value) && !(given && value == "")
}

// IsTaint reports whether a taint may have that key and value, which may be empty.
func IsTaint(key, value string) bool {
	return keyPattern.MatchString(key) && taintValue.MatchString(value)
}

// TaintText gives the form that people write.
func TaintText(t *blixardv1.Taint) string {
	return tainted(t.GetKey(), t.GetValue()) + ":" + EffectText(t.GetEffect())
}

// TolerationText gives the form that people write.
func TolerationText(t *blixardv1.Toleration) string {
	text := tainted(t.GetKey(), t.GetValue())
	if t.GetEffect() != blixardv1.TaintEffect_unspecified {
		text += ":" + EffectText(t.GetEffect())
	}
	return text
}

func tainted(key, value string) string {
	if value == "" {
		return key
	}
	return key + "=" + value
}

// Tolerates reports whether a toleration is of that taint.
func Tolerates(t *blixardv1.Toleration, taint *blixardv1.Taint) bool {
	return t.GetKey() == taint.GetKey() && (t.GetValue() == "" || t.GetValue() == taint.GetValue()) &&
		(t.GetEffect() == blixardv1.TaintEffect_unspecified || t.GetEffect() == taint.GetEffect())
}

// Untolerated gives the first taint of a node, of an effect or stronger, that a VM does
// not tolerate; nil when there is none.
func Untolerated(taints []*blixardv1.Taint, s *blixardv1.Scheduling, least blixardv1.TaintEffect_Enum) *blixardv1.Taint {
next:
	for _, taint := range taints {
		if taint.GetEffect() < least {
			continue
		}
		for _, t := range s.GetTolerations() {
			if Tolerates(t, taint) {
				continue next
			}
		}
		return taint
	}
	return nil
}

// SameTaints reports whether two nodes have the same taints; both are ordered by key.
func SameTaints(a, b []*blixardv1.Taint) bool {
	if len(a) != len(b) {
		return false
	}
	for i, t := range a {
		if o := b[i]; t != o && (t.GetKey() != o.GetKey() || t.GetValue() != o.GetValue() || t.GetEffect() != o.GetEffect()) {
			return false
		}
	}
	return true
}

// CompareTaints orders taints as a node has them, by key.
func CompareTaints(a, b *blixardv1.Taint) int { return cmp.Compare(a.GetKey(), b.GetKey()) }
