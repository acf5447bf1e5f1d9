package cli

import (
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// Colours, as SGR parameters.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
	cyan   = "36"
	bold   = "1"
	faint  = "2"
)

// cellGap is between columns, in spaces.
const cellGap = 2

// columnWidthMin is what a shortened column keeps.
const columnWidthMin = 6

// clean makes text from a guest or a node safe to print: control characters and
// what reorders text become a visible mark.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || unicode.IsControl(r) || unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
			return '?'
		}
		return r
	}, text)
}

// colorful says whether to colour a stream: a terminal that is not dumb, and
// NO_COLOR not set (no-color.org).
func (a *app) colorful(stream io.Writer) bool {
	if a.env("NO_COLOR") != "" || a.env("TERM") == "dumb" {
		return false
	}
	_, ok := terminalOf(stream)
	return ok
}

func paint(on bool, color, text string) string {
	if !on || color == "" || text == "" {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

func (a *app) outColor(color, text string) string { return paint(a.colorful(a.stdout), color, text) }

func (a *app) errColor(color, text string) string { return paint(a.colorful(a.stderr), color, text) }

// table is text in columns.
type table struct {
	header []string
	rows   [][]string
	// shrink lists the columns that may be shortened to fit, the first one first.
	shrink []int
	// color gives the colour of a cell; nil means none.
	color func(column int, cell string) string
}

func (t *table) add(cells ...string) {
	for i, c := range cells {
		cells[i] = clean(c)
	}
	t.rows = append(t.rows, cells)
}

// write prints the table, shortened to the terminal's width if out is one.
func (a *app) writeTable(t *table) error {
	width := 0
	if fd, ok := terminalOf(a.stdout); ok {
		if w, _, err := term.GetSize(fd); err == nil {
			width = w
		}
	}
	_, err := io.WriteString(a.stdout, t.text(width, a.colorful(a.stdout)))
	return err
}

// text lays the table out; width 0 means no limit.
func (t *table) text(width int, colorful bool) string {
	widths := make([]int, len(t.header))
	for _, row := range append([][]string{t.header}, t.rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	if width > 0 {
		t.fit(widths, width)
	}
	var b strings.Builder
	t.line(&b, widths, t.header, func(int, string) string { return bold }, colorful)
	for _, row := range t.rows {
		t.line(&b, widths, row, t.color, colorful)
	}
	return b.String()
}

func (t *table) fit(widths []int, width int) {
	total := cellGap * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for _, i := range t.shrink {
		if total <= width {
			return
		}
		cut := min(total-width, max(0, widths[i]-max(columnWidthMin, len(t.header[i]))))
		widths[i] -= cut
		total -= cut
	}
}

func (t *table) line(b *strings.Builder, widths []int, row []string, color func(int, string) string, colorful bool) {
	last := len(row) - 1
	for last > 0 && row[last] == "" {
		last--
	}
	for i, cell := range row[:last+1] {
		short := shortenTo(cell, widths[i])
		padding := widths[i] - utf8.RuneCountInString(short) + cellGap
		if color != nil {
			short = paint(colorful, color(i, cell), short)
		}
		b.WriteString(short)
		if i < last {
			b.WriteString(strings.Repeat(" ", padding))
		}
	}
	b.WriteByte('\n')
}

// shortenTo cuts text to that many characters, the last of them a mark.
func shortenTo(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	runes := []rune(text)
	return string(runes[:max(0, width-1)]) + "…"
}

// facts prints names and values below each other.
func (a *app) facts(rows [][2]string) error {
	width := 0
	for _, r := range rows {
		if r[1] != "" {
			width = max(width, len(r[0]))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		if r[1] == "" {
			continue
		}
		name := fmt.Sprintf("%-*s", width+1, r[0]+":")
		fmt.Fprintf(&b, "%s %s\n", a.outColor(faint, name), clean(r[1]))
	}
	_, err := io.WriteString(a.stdout, b.String())
	return err
}
