package kernel

import (
	"bufio"
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/blixard/blixard/internal/problem"
)

// ownConfig is the text of the options of blixard's own kernel, comments and all.
//
//go:embed config
var ownConfig string

// option is one line of a kernel configuration. Value is "n" for one that is off.
type option struct{ name, value string }

func (o option) String() string { return o.name + "=" + o.value }

var (
	optionLine = regexp.MustCompile(`^(CONFIG_[A-Za-z0-9_]+)=(y|n|-?\d+|0x[0-9a-fA-F]+|"[^"]*")$`)
	offLine    = regexp.MustCompile(`^# (CONFIG_[A-Za-z0-9_]+) is not set$`)
)

// parseOptions reads a configuration text: options, blank lines and comments. An option twice or a
// line that is none of these is an error with its number; modules (=m) are errors, since nothing
// would load them.
func parseOptions(text string) ([]option, error) {
	var options []option
	seen := map[string]bool{}
	scanner := bufio.NewScanner(strings.NewReader(text))
	for n := 1; scanner.Scan(); n++ {
		line := strings.TrimSpace(scanner.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		m := optionLine.FindStringSubmatch(line)
		switch {
		case m == nil:
			return nil, problem.New(problem.Invalid, "kernel.config", "kernel configuration, line %d: %q is no option", n, line).
				WithHint("write CONFIG_NAME=y, =n, a number or a quoted text; =m is of no use in a kernel without modules")
		case seen[m[1]]:
			return nil, problem.New(problem.Invalid, "kernel.config", "kernel configuration, line %d: %s stands there twice", n, m[1])
		}
		seen[m[1]] = true
		options = append(options, option{m[1], m[2]})
	}
	if err := scanner.Err(); err != nil {
		return nil, err
	}
	return options, nil
}

// parseDotConfig reads what Kconfig wrote. Options that are off or unknown are absent.
func parseDotConfig(text string) map[string]string {
	set := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && strings.HasPrefix(name, "CONFIG_") {
			set[name] = value
		}
	}
	return set
}

// mergeOptions gives base with every option of wanted in place of base's own line for it.
func mergeOptions(base string, wanted []option) string {
	replaced := map[string]bool{}
	for _, o := range wanted {
		replaced[o.name] = true
	}
	var b strings.Builder
	for line := range strings.Lines(base) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), "=")
		if m := offLine.FindStringSubmatch(strings.TrimSpace(line)); m != nil {
			name = m[1]
		}
		if !replaced[name] {
			b.WriteString(strings.TrimSuffix(line, "\n") + "\n") // the last line may have none
		}
	}
	for _, o := range wanted {
		if o.value == "n" {
			fmt.Fprintf(&b, "# %s is not set\n", o.name)
		} else {
			fmt.Fprintf(&b, "%s\n", o)
		}
	}
	return b.String()
}

// checkOptions fails with a problem that names every wanted option that is not so in the finished
// configuration.
func checkOptions(wanted []option, finished string) error {
	set := parseDotConfig(finished)
	var dropped []string
	for _, o := range wanted {
		got, ok := set[o.name]
		if !ok {
			got = "n"
		}
		if got != o.value {
			dropped = append(dropped, fmt.Sprintf("%s (is %s)", o, got))
		}
	}
	if len(dropped) == 0 {
		return nil
	}
	slices.Sort(dropped)
	return problem.New(problem.Invalid, "kernel.options_dropped", "the kernel's configuration did not keep: %s", strings.Join(dropped, ", ")).
		WithHint("an option that they depend on is missing, or this kernel version does not have them: see `make menuconfig`")
}
