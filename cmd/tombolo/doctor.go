package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"
)

// finding is one thing that doctor looked at.
type finding struct {
	Check  string `json:"check"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
}

func (a *app) doctorCommand() *cobra.Command {
	return a.verb("doctor", "Look at what might be wrong, here and at the server", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		if err := a.checkOutput(); err != nil {
			return err
		}
		report := struct {
			Items []finding `json:"items"`
		}{}
		add := func(check string, err error, detail string) {
			if err != nil {
				detail = err.Error()
			}
			report.Items = append(report.Items, finding{check, err == nil, detail})
		}
		var warnings []finding // they fail nothing
		c, err := a.signIn()
		if err != nil {
			add("context", err, "")
		} else {
			add("context", nil, c.context.HTTP+" as "+string(c.context.User))
			for _, path := range []string{"/livez", "/readyz?verbose"} {
				detail, err := c.probe(ctx, path)
				add(strings.TrimPrefix(path, "/"), err, detail)
				for _, part := range strings.Split(detail, "; ") {
					if warning, ok := strings.CutPrefix(part, "[!] "); ok {
						warnings = append(warnings, finding{"warning", false, warning})
					}
				}
			}
			_, err := c.read(ctx, "/v1/regions", nil)
			add("credentials", err, "accepted")
		}
		for _, tool := range []string{"qemu-system-x86_64", "qemu-img", "e2fsck"} {
			path, err := exec.LookPath(tool)
			if err != nil {
				err = errors.New("not installed; only what needs it is missing")
			}
			add(tool, err, path)
		}
		report.Items = append(report.Items, warnings...)
		b, err := json.Marshal(report)
		if err != nil {
			return err
		}
		if err := a.show(b, shape{items: "items", name: "check", columns: []column{{"CHECK", "check", false}, {"OK", "ok", false}, {"DETAIL", "detail", false}}}); err != nil {
			return err
		}
		for _, f := range report.Items[:min(4, len(report.Items))] {
			if !f.OK && !strings.HasPrefix(f.Check, "qemu") && f.Check != "e2fsck" {
				return fail(exitError, "doctor-found", "%s: %s", f.Check, f.Detail)
			}
		}
		return nil
	})
}

// probe asks one of the paths that answer in plain text.
func (c *client) probe(ctx context.Context, path string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(c.context.HTTP, "/")+path, nil)
	if err != nil {
		return "", err
	}
	b, _, err := c.sendPlain(r)
	return strings.Join(strings.Split(strings.TrimSpace(string(b)), "\n"), "; "), err
}
