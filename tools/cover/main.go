// Command cover merges coverage profiles of the same code and prints how much of
// each package was run. It fails when that is less than -min percent somewhere.
// `make cover` runs it, at the root of the module that the profiles are of.
//
// Generated code is left out. A package with no statements is not named.
package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// generated is how Go marks such files (go help generate).
var generated = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// block is some statements that run together.
type block struct {
	statements int
	ran        bool
}

// profile is the union of profiles: file, then place in the file.
type profile map[string]map[string]block

func main() {
	least := flag.Float64("min", 0, "least percentage of each package")
	module := flag.String("module", "", "path of the module, which files are named by")
	out := flag.String("o", "", "also write the merged profile to that file")
	flag.Parse()
	if err := run(*module, *least, *out, flag.Args(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "cover:", err)
		os.Exit(1)
	}
}

func run(module string, least float64, out string, names []string, w io.Writer) error {
	p := profile{}
	for _, name := range names {
		if err := p.read(name); err != nil {
			return err
		}
	}
	if err := p.dropGenerated(module); err != nil {
		return err
	}
	if out != "" {
		if err := p.write(out); err != nil {
			return err
		}
	}
	return p.report(module, least, w)
}

// read adds one profile: lines "FILE:PLACE STATEMENTS COUNT" below the mode.
func (p profile) read(name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		if n == 1 && strings.HasPrefix(lines.Text(), "mode: ") {
			continue
		}
		words := strings.Fields(lines.Text())
		if len(words) != 3 || !strings.Contains(words[0], ":") {
			return fmt.Errorf("%s:%d: not a line of a profile", name, n)
		}
		statements, err := strconv.Atoi(words[1])
		if err != nil {
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
		colon := strings.LastIndex(words[0], ":")
		file, place := words[0][:colon], words[0][colon+1:]
		if p[file] == nil {
			p[file] = map[string]block{}
		}
		p[file][place] = block{statements, p[file][place].ran || words[2] != "0"}
	}
	return lines.Err()
}

func (p profile) dropGenerated(module string) error {
	for file := range p {
		text, err := os.ReadFile(filepath.FromSlash(strings.TrimPrefix(file, module+"/")))
		if err != nil {
			return fmt.Errorf("%w: run it at the root of the module", err)
		}
		if generated.Match(text) {
			delete(p, file)
		}
	}
	return nil
}

func (p profile) write(name string) error {
	var b bytes.Buffer
	b.WriteString("mode: set\n")
	for _, file := range slices.Sorted(maps.Keys(p)) {
		for _, place := range slices.Sorted(maps.Keys(p[file])) {
			one := p[file][place]
			fmt.Fprintf(&b, "%s:%s %d %d\n", file, place, one.statements, map[bool]int{true: 1}[one.ran])
		}
	}
	return os.WriteFile(name, b.Bytes(), 0o644)
}

func (p profile) report(module string, least float64, w io.Writer) error {
	type sum struct{ all, ran int }
	sums, total := map[string]sum{}, sum{}
	for file, blocks := range p {
		pkg := strings.TrimPrefix(path.Dir(file), module+"/")
		s := sums[pkg]
		for _, b := range blocks {
			s.all += b.statements
			total.all += b.statements
			if b.ran {
				s.ran += b.statements
				total.ran += b.statements
			}
		}
		sums[pkg] = s
	}
	if total.all == 0 {
		return fmt.Errorf("the profiles are empty")
	}
	var low []string
	for _, pkg := range slices.Sorted(maps.Keys(sums)) {
		s := sums[pkg]
		if s.all == 0 {
			continue
		}
		percent, mark := 100*float64(s.ran)/float64(s.all), ""
		if percent < least {
			low = append(low, pkg)
			mark = "  too low"
		}
		if _, err := fmt.Fprintf(w, "%5.1f%%  %s%s\n", percent, pkg, mark); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintf(w, "%5.1f%%  all\n", 100*float64(total.ran)/float64(total.all)); err != nil {
		return err
	}
	if len(low) > 0 {
		return fmt.Errorf("%d packages are below %g %%: %s", len(low), least, strings.Join(low, ", "))
	}
	return nil
}
