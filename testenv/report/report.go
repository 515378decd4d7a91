// Package report collects what was measured as tables with goals, prints them, and keeps them in a document between
// markers, so that the text around them stays a person's.
package report

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// Table is one table of a document. Notes stand below it.
type Table struct {
	Name  string // of its place in the document: <!-- begin NAME --> … <!-- end NAME -->
	Head  []string
	Rows  [][]string
	Notes []string
}

// Add appends a row. A cell is formatted as %v, a float64 with three digits that count.
func (t *Table) Add(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		switch c := c.(type) {
		case float64:
			row[i] = Number(c)
		default:
			row[i] = fmt.Sprint(c)
		}
	}
	t.Rows = append(t.Rows, row)
}

// Note appends a sentence below the table.
func (t *Table) Note(format string, args ...any) {
	t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
}

// Number writes a figure with as many decimals as its size deserves.
func Number(x float64) string {
	switch {
	case x >= 100 || x <= -100:
		return fmt.Sprintf("%.0f", x)
	case x >= 10 || x <= -10:
		return fmt.Sprintf("%.1f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

// Markdown is the table as a document has it.
func (t *Table) Markdown() string {
	var b strings.Builder
	line := func(cells []string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	line(t.Head)
	line(slices.Repeat([]string{"---"}, len(t.Head)))
	for _, r := range t.Rows {
		line(r)
	}
	for _, n := range t.Notes {
		fmt.Fprintf(&b, "\n%s\n", n)
	}
	return b.String()
}

// Print writes the table in columns.
func (t *Table) Print(w io.Writer) {
	width := make([]int, len(t.Head))
	for _, row := range append([][]string{t.Head}, t.Rows...) {
		for i, c := range row {
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	fmt.Fprintf(w, "\n%s\n", t.Name)
	for _, row := range append([][]string{t.Head}, t.Rows...) {
		for i, c := range row {
			fmt.Fprintf(w, "  %s%s", c, strings.Repeat(" ", width[i]-len([]rune(c))))
		}
		fmt.Fprintln(w)
	}
	for _, n := range t.Notes {
		fmt.Fprintf(w, "  %s\n", n)
	}
}

// Write puts the table between its markers of the document, which must be there once.
func (t *Table) Write(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	begin, end := "<!-- begin "+t.Name+" -->\n", "<!-- end "+t.Name+" -->"
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, closed := strings.Cut(rest, end)
	if !ok || !closed {
		return fmt.Errorf("%s has no place for the table %s: it wants %s and %s", path, t.Name, strings.TrimSpace(begin), end)
	}
	return os.WriteFile(path, []byte(before+begin+t.Markdown()+end+after), 0o644)
}

// Goals are the limits that figures are held against.
type Goals struct {
	Table
	missed []string
}

// NewGoals makes a table of goals; the name is that of its place in the document.
func NewGoals(name string) *Goals {
	return &Goals{Table: Table{Name: name, Head: []string{"goal", "limit", "measured", ""}}}
}

// AtLeast and AtMost say a limit and hold the figure against it.
func (g *Goals) AtLeast(goal string, limit, measured float64, unit string) {
	g.check(goal, "≥ "+Number(limit)+unit, Number(measured)+unit, measured >= limit)
}

// AtMost is AtLeast's opposite.
func (g *Goals) AtMost(goal string, limit, measured float64, unit string) {
	g.check(goal, "≤ "+Number(limit)+unit, Number(measured)+unit, measured <= limit)
}

// None is met where nothing was found.
func (g *Goals) None(goal string, found []string) {
	measured := "none"
	if len(found) > 0 {
		measured = strings.Join(found, ", ")
	}
	g.check(goal, "none", measured, len(found) == 0)
}

// NotMeasured is a goal of which nothing is known: that is not meeting it.
func (g *Goals) NotMeasured(goal string, why error) {
	g.check(goal, "", "not measured: "+why.Error(), false)
}

func (g *Goals) check(goal, limit, measured string, met bool) {
	word := "met"
	if !met {
		word = "**missed**"
		g.missed = append(g.missed, fmt.Sprintf("%s: %s, limit %s", goal, measured, limit))
	}
	g.Add(goal, limit, measured, word)
}

// Missed lists the goals that were not met.
func (g *Goals) Missed() []string { return g.missed }
