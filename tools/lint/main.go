// Command lint holds the analyzers that the project's code must pass. `make lint`
// runs it as the vet tool of the Go command, so that only packages that changed
// are looked at again.
//
// Each analyzer is here for a reason; a finding is mended, not silenced. Where the
// code is right all the same, "//nolint:NAME // why" on its line says so.
package main

import (
	"strings"

	"github.com/gordonklaus/ineffassign/pkg/ineffassign"
	"github.com/gostaticanalysis/nilerr"
	"github.com/kisielk/errcheck/errcheck"
	"golang.org/x/tools/go/analysis"
	"golang.org/x/tools/go/analysis/passes/nilness"
	"golang.org/x/tools/go/analysis/passes/unusedwrite"
	"golang.org/x/tools/go/analysis/passes/waitgroup"
	"golang.org/x/tools/go/analysis/unitchecker"
	"honnef.co/go/tools/analysis/lint"
	"honnef.co/go/tools/simple"
	"honnef.co/go/tools/staticcheck"
	"honnef.co/go/tools/stylecheck"
	"honnef.co/go/tools/unused"
)

// single analyzers of other projects and of the Go team beyond vet's own.
var single = []*analysis.Analyzer{
	// A dropped error is a lie to the caller.
	errcheck.Analyzer,
	// A value that nobody reads is a mistake in the making.
	ineffassign.Analyzer,
	unusedwrite.Analyzer,
	// `return nil` where an error is at hand.
	nilerr.Analyzer,
	// A nil that is used on some path.
	nilness.Analyzer,
	// wg.Add inside the goroutine it counts.
	waitgroup.Analyzer,
	// Code that nothing reaches.
	unused.Analyzer.Analyzer,
}

// style are the few of stylecheck's rules that the project wants.
var style = []string{
	"ST1005", // error strings begin lower case and end without a full stop
	"ST1012", // error variables are named errX or ErrX
	"ST1016", // one receiver name a type
	"ST1017", // no Yoda conditions
	"ST1019", // no package imported twice
	"ST1023", // no redundant type in a declaration
}

// off are checks of staticcheck that do not fit.
var off = map[string]string{
	"SA9003": "an empty branch with a comment is sometimes the clearest form",
}

func main() {
	analyzers := single
	for _, group := range [][]*lint.Analyzer{staticcheck.Analyzers, simple.Analyzers} {
		for _, a := range group {
			if _, isOff := off[a.Analyzer.Name]; !isOff {
				analyzers = append(analyzers, a.Analyzer)
			}
		}
	}
	for _, a := range stylecheck.Analyzers {
		for _, name := range style {
			if strings.EqualFold(a.Analyzer.Name, name) {
				analyzers = append(analyzers, a.Analyzer)
			}
		}
	}
	unitchecker.Main(withNolint(analyzers)...)
}
