package constraint

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// FactPrefix of keys that are facts of a node and no labels.
const FactPrefix = "node."

// textMax bounds a text form: a key and 64 values.
const textMax = 64 * 256

var (
	keyPattern   = regexp.MustCompile(`^[a-z0-9A-Z]([-a-z0-9A-Z_./]{0,61}[a-z0-9A-Z])?$`)
	valuePattern = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9_.+:/]{0,252}$`)
	partPattern  = regexp.MustCompile(`^\s*([^\s=!<>]+)\s*(!=|<=|>=|=|<|>|\s+not\s+in\s+|\s+in\s+)\s*(.*?)\s*$`)
)

const (
	valuesMax = 64
	spelling  = "write zone=a, zone!=a, 'disk in ssd,nvme', 'disk not in hdd', 'node.version>=0.2', gpu, or '!gpu'"
)

var operators = map[string]blixardv1.Operator_Enum{
	"=": blixardv1.Operator_equal, "!=": blixardv1.Operator_not_equal,
	"<": blixardv1.Operator_less, "<=": blixardv1.Operator_at_most,
	">": blixardv1.Operator_more, ">=": blixardv1.Operator_at_least,
	"in": blixardv1.Operator_in, "not in": blixardv1.Operator_not_in,
}

// Parse reads the form that [Text] writes. It fails with a problem of kind Invalid and
// code constraint.text.
func Parse(text string) (*blixardv1.Constraint, error) {
	if len(text) > textMax {
		return nil, problem.New(problem.Invalid, "constraint.text", "a constraint of %d bytes: at most %d are possible", len(text), textMax)
	}
	c := &blixardv1.Constraint{}
	m := partPattern.FindStringSubmatch(text)
	if m == nil {
		name, absent := strings.CutPrefix(strings.TrimSpace(text), "!")
		c.Key, c.Operator = strings.TrimSpace(name), blixardv1.Operator_exists
		if absent {
			c.Operator = blixardv1.Operator_absent
		}
		return c, check(c, text)
	}
	c.Key, c.Operator = m[1], operators[strings.Join(strings.Fields(m[2]), " ")]
	switch c.Operator {
	case blixardv1.Operator_in, blixardv1.Operator_not_in:
		for _, v := range strings.Split(m[3], ",") {
			c.Values = append(c.Values, strings.TrimSpace(v))
		}
	default:
		c.Values = []string{m[3]}
	}
	return c, check(c, text)
}

func check(c *blixardv1.Constraint, text string) error {
	if !keyPattern.MatchString(c.GetKey()) {
		return problem.New(problem.Invalid, "constraint.text", "%q is no constraint: %q is no key of a label", text, c.GetKey()).WithHint(spelling)
	}
	if len(c.GetValues()) > valuesMax {
		return problem.New(problem.Invalid, "constraint.text", "a constraint with %d values: at most %d are possible", len(c.GetValues()), valuesMax)
	}
	for _, v := range c.GetValues() {
		if !valuePattern.MatchString(v) {
			return problem.New(problem.Invalid, "constraint.text", "%q is no constraint: %q is no value of a label", text, v).WithHint(spelling)
		}
	}
	return nil
}

// Text gives the form that people write.
func Text(c *blixardv1.Constraint) string {
	switch c.GetOperator() {
	case blixardv1.Operator_exists:
		return c.GetKey()
	case blixardv1.Operator_absent:
		return "!" + c.GetKey()
	case blixardv1.Operator_in:
		return c.GetKey() + " in " + strings.Join(c.GetValues(), ",")
	case blixardv1.Operator_not_in:
		return c.GetKey() + " not in " + strings.Join(c.GetValues(), ",")
	}
	for word, op := range operators {
		if op == c.GetOperator() {
			return c.GetKey() + word + strings.Join(c.GetValues(), ",")
		}
	}
	return c.GetKey() + "?"
}

// Labels of a node: those of its configuration, and over them those that people set.
func Labels(n *blixardv1.Node) map[string]string {
	if len(n.GetLabels()) == 0 {
		return n.GetFingerprint().GetLabels()
	}
	all := maps.Clone(n.GetFingerprint().GetLabels())
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, n.GetLabels())
	return all
}

// IsLabel reports whether a node may have a label of that key and value, which may be
// empty.
func IsLabel(key, value string) bool {
	return keyPattern.MatchString(key) && (value == "" || valuePattern.MatchString(value))
}

// Valid reports whether the number of values is one that the operator takes.
func Valid(c *blixardv1.Constraint) bool {
	switch n := len(c.GetValues()); c.GetOperator() {
	case blixardv1.Operator_exists, blixardv1.Operator_absent:
		return n == 0
	case blixardv1.Operator_in, blixardv1.Operator_not_in:
		return n >= 1
	case blixardv1.Operator_unspecified:
		return false
	default:
		return n == 1
	}
}

// Met reports whether a node meets c whose label of that key has the value, or which
// has none of it.
func Met(c *blixardv1.Constraint, value string, has bool) bool {
	one := func() string {
		if len(c.GetValues()) == 0 {
			return ""
		}
		return c.GetValues()[0]
	}
	switch c.GetOperator() {
	case blixardv1.Operator_equal:
		return has && value == one()
	case blixardv1.Operator_not_equal:
		return !has || value != one()
	case blixardv1.Operator_in:
		return has && slices.Contains(c.GetValues(), value)
	case blixardv1.Operator_not_in:
		return !has || !slices.Contains(c.GetValues(), value)
	case blixardv1.Operator_less:
		return has && Compare(value, one()) < 0
	case blixardv1.Operator_at_most:
		return has && Compare(value, one()) <= 0
	case blixardv1.Operator_more:
		return has && Compare(value, one()) > 0
	case blixardv1.Operator_at_least:
		return has && Compare(value, one()) >= 0
	case blixardv1.Operator_exists:
		return has
	case blixardv1.Operator_absent:
		return !has
	}
	return false
}

// Contradict reports whether no value at all meets both of two constraints on one key.
// It knows of values that are named; of bounds alone it says no.
func Contradict(a, b *blixardv1.Constraint) bool {
	candidates := append(slices.Clone(a.GetValues()), b.GetValues()...)
	named := false
	for _, c := range []*blixardv1.Constraint{a, b} {
		switch c.GetOperator() {
		case blixardv1.Operator_equal, blixardv1.Operator_in, blixardv1.Operator_absent:
			named = true
		}
	}
	if !named || Met(a, "", false) && Met(b, "", false) {
		return false
	}
	return !slices.ContainsFunc(candidates, func(v string) bool { return Met(a, v, true) && Met(b, v, true) })
}

// Compare orders values as versions are: part by part, where points and dashes part
// them; numbers by their value, all else as text, and a number before a text. A missing
// part comes first.
func Compare(a, b string) int {
	as, bs := parts(a), parts(b)
	for i := range min(len(as), len(bs)) {
		if c := comparePart(as[i], bs[i]); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(as), len(bs))
}

func parts(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == '.' || r == '-' || r == '+' })
}

func comparePart(a, b string) int {
	x, errA := strconv.ParseUint(a, 10, 64)
	y, errB := strconv.ParseUint(b, 10, 64)
	switch {
	case errA == nil && errB == nil:
		return cmp.Compare(x, y)
	case errA == nil:
		return -1
	case errB == nil:
		return 1
	}
	return cmp.Compare(a, b)
}
