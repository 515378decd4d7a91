package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/goccy/go-yaml"
	"github.com/ohler55/ojg/jp"
)

// column is one column of a table: a heading and the path of its value.
type column struct {
	heading string
	path    string // "region", or "profile.name"
	wide    bool   // shown with -o wide only
}

// shape is how an answer is shown to people: the columns of its items (or of
// itself), and which field is its name.
type shape struct {
	items   string // the field with the rows; empty: the answer is the row
	name    string
	columns []column
	parts   *shape // a second table, of what it consists of; under the first; and so on
}

// checkOutput refuses a format before anything is done.
func (a *app) checkOutput() error {
	switch a.output {
	case "table", "wide", "json", "yaml", "name":
		return nil
	}
	if expression, ok := strings.CutPrefix(a.output, "jsonpath="); ok {
		if _, err := jp.ParseString(expression); err != nil {
			return usage("-o %s: %v", a.output, err)
		}
		if !strings.HasPrefix(expression, "$") { // it would find nothing, and say nothing
			return usage("-o %s: a JSONPath begins with $", a.output).withNext("-o 'jsonpath=$.items[*].name', for instance; -o json shows the names")
		}
		return nil
	}
	return usage("-o %s is not a format", a.output).withNext("table, wide, json, yaml, name or jsonpath=EXPRESSION")
}

// show prints an answer on stdout in the format that was asked for.
func (a *app) show(body []byte, s shape) error {
	switch {
	case a.output == "json":
		var out bytes.Buffer
		if err := json.Indent(&out, bytes.TrimSpace(body), "", "  "); err != nil {
			return err
		}
		_, err := fmt.Fprintln(a.out, out.String())
		return err
	case a.output == "yaml":
		out, err := yaml.JSONToYAML(body)
		if err != nil {
			return err
		}
		_, err = a.out.Write(out)
		return err
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		return err
	}
	if expression, ok := strings.CutPrefix(a.output, "jsonpath="); ok {
		return printPath(a.out, expression, measurable(value))
	}
	rows := []any{value}
	if s.items != "" {
		rows, _ = at(value, s.items).([]any)
	}
	if a.output == "name" {
		for _, r := range rows {
			fmt.Fprintln(a.out, text(at(r, s.name)))
		}
		return nil
	}
	if err := a.table(rows, s); err != nil || s.parts == nil {
		return err
	}
	for p := s.parts; p != nil; p = p.parts {
		if rows, _ = at(value, p.items).([]any); len(rows) == 0 {
			continue
		}
		fmt.Fprintln(a.out)
		if err := a.table(rows, *p); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) table(rows []any, s shape) error {
	if len(rows) == 0 {
		a.say("nothing there")
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 4, 3, ' ', 0)
	line := func(cell func(column) string) {
		var cells []string
		for _, c := range s.columns {
			if !c.wide || a.output == "wide" {
				cells = append(cells, cell(c))
			}
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	line(func(c column) string { return c.heading })
	for _, r := range rows {
		line(func(c column) string { return text(at(r, c.path)) })
	}
	return w.Flush()
}

// at goes down a path of fields; of a list it gives what all its elements have there.
func at(value any, path string) any {
	field, rest, more := strings.Cut(path, ".")
	switch v := value.(type) {
	case map[string]any:
		if !more {
			return v[field]
		}
		return at(v[field], rest)
	case []any:
		var all []any
		for _, e := range v {
			switch found := at(e, path).(type) {
			case nil:
			case []any:
				all = append(all, found...)
			default:
				all = append(all, found)
			}
		}
		return all
	}
	return nil
}

// text is a value in a cell.
func text(value any) string {
	switch v := value.(type) {
	case nil:
		return "-"
	case string:
		if v == "" {
			return "-"
		}
		return v
	case bool:
		if v {
			return "yes"
		}
		return "no"
	case []any:
		var all []string
		for _, e := range v {
			all = append(all, text(e))
		}
		if len(all) == 0 {
			return "-"
		}
		return strings.Join(all, ",")
	case map[string]any:
		b, err := json.Marshal(v)
		if err != nil {
			return "?"
		}
		return string(b)
	}
	return fmt.Sprint(value)
}

// measurable has numbers in the place of their texts, for a filter compares numbers
// ($.items[?(@.version==2)]). A number that neither type holds exactly keeps its text.
func measurable(value any) any {
	switch v := value.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		if f, err := v.Float64(); err == nil && strings.ContainsAny(v.String(), ".eE") {
			return f
		}
	case []any:
		for i := range v {
			v[i] = measurable(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = measurable(v[k])
		}
	}
	return value
}

// printPath prints what a JSONPath finds, one per line, strings without quotes.
func printPath(out io.Writer, expression string, value any) error {
	path, err := jp.ParseString(expression)
	if err != nil {
		return usage("-o jsonpath=%s: %v", expression, err)
	}
	for _, found := range path.Get(value) {
		switch v := found.(type) {
		case string:
			fmt.Fprintln(out, v)
		case json.Number:
			fmt.Fprintln(out, v.String())
		default:
			b, err := json.Marshal(v)
			if err != nil {
				return err
			}
			fmt.Fprintln(out, string(b))
		}
	}
	return nil
}
