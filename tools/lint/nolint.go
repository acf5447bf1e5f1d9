package main

import (
	"go/ast"
	"go/token"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/tools/go/analysis"
)

// nolintPattern wants the names and a reason.
var nolintPattern = regexp.MustCompile(`^//nolint:([A-Za-z0-9,]+) // .+`)

// generatedPattern is the Go convention for generated files.
var generatedPattern = regexp.MustCompile(`(?m)^// Code generated .* DO NOT EDIT\.$`)

// withNolint drops the reports of generated files and of lines that say why.
func withNolint(analyzers []*analysis.Analyzer) []*analysis.Analyzer {
	for _, a := range analyzers {
		run := a.Run
		a.Run = func(pass *analysis.Pass) (any, error) {
			quiet := quietLines(pass.Fset, pass.Files)
			report := pass.Report
			pass.Report = func(d analysis.Diagnostic) {
				if !quiet(a.Name, pass.Fset.Position(d.Pos)) {
					report(d)
				}
			}
			return run(pass)
		}
	}
	return analyzers
}

// quietLines finds what is not to be reported.
func quietLines(fset *token.FileSet, files []*ast.File) func(name string, at token.Position) bool {
	type line struct {
		file string
		line int
	}
	generated := map[string]bool{}
	named := map[line][]string{}
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			// What a deferred Close returns comes after all that matters; where it
			// does matter (a file that was written), it is not deferred bare.
			if d, ok := n.(*ast.DeferStmt); ok {
				if sel, ok := d.Call.Fun.(*ast.SelectorExpr); ok && sel.Sel.Name == "Close" {
					at := fset.Position(d.Pos())
					named[line{at.Filename, at.Line}] = []string{"errcheck"}
				}
			}
			return true
		})
		for _, group := range f.Comments {
			for _, c := range group.List {
				at := fset.Position(c.Pos())
				if generatedPattern.MatchString(c.Text) {
					generated[at.Filename] = true
				}
				if m := nolintPattern.FindStringSubmatch(c.Text); m != nil {
					named[line{at.Filename, at.Line}] = strings.Split(m[1], ",")
				}
			}
		}
	}
	return func(name string, at token.Position) bool {
		return generated[at.Filename] || slices.Contains(named[line{at.Filename, at.Line}], name)
	}
}
