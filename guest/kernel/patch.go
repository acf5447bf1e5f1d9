package kernel

import (
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ownPatches are blixard's changes to the kernel's source, as unified diffs.
//
//go:embed patches/*.patch
var ownPatches embed.FS

// patch is the change of one file.
type patch struct {
	name string // of the patch, for errors
	file string // relative to the source
	// hunks replace lines; each must be found exactly once in the file.
	hunks []hunk
}

type hunk struct{ before, after string }

var hunkHeader = regexp.MustCompile(`^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@`)

// readPatches reads all *.patch files of dir in fsys, in the order of their names.
func readPatches(fsys fs.FS, dir string) ([]patch, error) {
	names, err := fs.Glob(fsys, path.Join(dir, "*.patch"))
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var all []patch
	for _, name := range names {
		raw, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		ps, err := parsePatch(path.Base(name), string(raw))
		if err != nil {
			return nil, err
		}
		all = append(all, ps...)
	}
	return all, nil
}

// parsePatch reads a unified diff. Text before the first "---" is a description.
func parsePatch(name, text string) ([]patch, error) {
	var patches []patch
	lines := strings.SplitAfter(text, "\n")
	for i := 0; i < len(lines); i++ {
		line := strings.TrimSuffix(lines[i], "\n")
		if file, ok := strings.CutPrefix(line, "+++ b/"); ok {
			words := strings.Fields(file) // behind the name may stand a date
			if len(words) == 0 {
				return nil, fmt.Errorf("patch %s: line %d: no file name", name, i+1)
			}
			patches = append(patches, patch{name: name, file: words[0]})
			continue
		}
		m := hunkHeader.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		if len(patches) == 0 {
			return nil, fmt.Errorf("patch %s: a hunk before any file name", name)
		}
		h, used, err := parseHunk(lines[i+1:], count(m[1]), count(m[2]))
		if err != nil {
			return nil, fmt.Errorf("patch %s: line %d: %w", name, i+1, err)
		}
		p := &patches[len(patches)-1]
		p.hunks = append(p.hunks, h)
		i += used
	}
	if len(patches) == 0 {
		return nil, fmt.Errorf("patch %s changes nothing", name)
	}
	return patches, nil
}

// count reads the length in a hunk's header, which is 1 when it is left out.
func count(s string) int {
	if s == "" {
		return 1
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0
	}
	return n
}

func parseHunk(lines []string, before, after int) (h hunk, used int, err error) {
	for before > 0 || after > 0 {
		if used == len(lines) || lines[used] == "" {
			return h, used, fmt.Errorf("the hunk is cut off")
		}
		line := lines[used]
		used++
		switch line[0] {
		case ' ', '\n':
			body := strings.TrimPrefix(line, " ")
			h.before, h.after = h.before+body, h.after+body
			before, after = before-1, after-1
		case '-':
			h.before += line[1:]
			before--
		case '+':
			h.after += line[1:]
			after--
		default:
			return h, used, fmt.Errorf("%q is no line of a hunk", line)
		}
	}
	if before != 0 || after != 0 || h.before == "" {
		return h, used, fmt.Errorf("the hunk's lengths are wrong")
	}
	return h, used, nil
}

// apply changes the file below root. A hunk whose old lines are not there exactly once is an error:
// a patch that applies somewhere else than meant would make a kernel nobody has seen.
func (p patch) apply(root *os.Root) error {
	raw, err := root.ReadFile(p.file)
	if err != nil {
		return fmt.Errorf("patch %s: %w", p.name, err)
	}
	text := string(raw)
	for i, h := range p.hunks {
		if n := strings.Count(text, h.before); n != 1 {
			return fmt.Errorf("patch %s: the lines of hunk %d are %d times in %s", p.name, i+1, n, p.file)
		}
		text = strings.Replace(text, h.before, h.after, 1)
	}
	return root.WriteFile(p.file, []byte(text), 0o644)
}
