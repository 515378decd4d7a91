package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/program"
	"github.com/tombolo-vdc/tombolo/handlers/api"
)

func (a *app) settingsSchema() *cobra.Command {
	return a.verb("schema", "The JSON Schema of the file that --config names", cobra.NoArgs, func(context.Context, []string) error {
		s, err := program.SettingsSchema()
		if err != nil {
			return err
		}
		b, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.out, string(b))
		return err
	})
}

// readSettings reads the file that --config names. Everything that is wrong is told at once, with its line.
func readSettings(path string) (program.Settings, error) {
	var s program.Settings
	b, err := os.ReadFile(path)
	if err != nil {
		return s, fail(exitError, "file-unreadable", "the settings cannot be read: %v", err)
	}
	if err := decodeYAML(path, b, &s, yaml.Strict()); err != nil && strings.TrimSpace(string(b)) != "" {
		if f := new(failure); errors.As(err, &f) {
			return s, f
		}
		return s, fail(exitError, "settings-invalid", "%s: %s", path, yaml.FormatError(err, false, true)).withNext("tombolo up schema says what may stand there")
	}
	faults := s.Faults()
	if len(faults) == 0 {
		return s, nil
	}
	file, err := parser.ParseBytes(b, 0)
	if err != nil {
		return s, err
	}
	f := fail(exitError, "settings-invalid", "%s cannot be used, for %s; nothing was started", path, count(len(faults), "reason"))
	for _, fault := range faults {
		f.Findings = append(f.Findings, api.Finding{Code: fault.Code, Path: fmt.Sprintf("%s:%d: %s", path, lineOf(file, fault.Path), fault.Path), Text: fault.Text})
	}
	return s, f.withNext("tombolo up schema says what may stand there")
}

// lineOf is the line of what the path leads to, or of what of it is there.
func lineOf(file *ast.File, path string) int {
	for {
		if p, err := yaml.PathString("$." + path); err == nil {
			if node, err := p.FilterFile(file); err == nil && node != nil {
				return node.GetToken().Position.Line
			}
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			return 1
		}
		path = path[:i]
	}
}
