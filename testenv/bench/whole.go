package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/tombolo-vdc/tombolo/testenv/process"
	"github.com/tombolo-vdc/tombolo/testenv/report"
)

// whole brings both versions to another region through the whole program: command line, HTTP, processes, agents.
func (c *copying) whole(ctx context.Context) (err error) {
	server, err := process.Up(ctx, c.binary, filepath.Join(c.dir, "program"), "--regions", sourceRegion+","+targetRegion)
	if err != nil {
		return err
	}
	t := &report.Table{Name: "whole", Head: []string{"version", "step", "seconds", "MiB that " + targetRegion + " received"}}
	down := func() error {
		peak, err := server.Down()
		t.Note("Both regions, the control plane and the bus in one process, over loopback, each command until its operation has ended; the process's memory peaked at %d MiB. `env create` reads, uploads and stores the raw image; the other saves it as a version, copies it, reads it back and, for version 2, switches.", peak/mib)
		return err
	}
	reference := ""
	for i, version := range []string{"v1", "v2"} {
		file := filepath.Join(c.dir, version+".yaml")
		if err := os.WriteFile(file, fmt.Appendf(nil, "name: Bench %s\nmachines:\n  - name: server\n    disks: [{name: root, file: %s.raw}]\n", version, version), 0o600); err != nil {
			return errors.Join(err, down())
		}
		var env, template struct {
			ID string `json:"id"`
		}
		took, err := server.CLI(ctx, &env, "env", "create", "-f", file, "--region", sourceRegion, "--wait", "--timeout", "15m")
		if err != nil {
			return errors.Join(err, down())
		}
		t.Add(version, "`env create`", took.Seconds(), "")
		args := []string{"template", "create", "--from-env", env.ID, "--name", "Bench", "--regions", sourceRegion + "," + targetRegion}
		if i > 0 {
			args = []string{"template", "replace", reference, "--from-env", env.ID}
		}
		if took, err = server.CLI(ctx, &template, append(args, "--wait", "--timeout", "15m")...); err != nil {
			return errors.Join(err, down())
		}
		if i == 0 {
			reference = template.ID
		}
		var where struct {
			Regions []struct {
				Region   string `json:"region"`
				Version  int    `json:"version"`
				Verified bool   `json:"verified"`
				Received int64  `json:"received"`
			} `json:"regions"`
		}
		if _, err := server.CLI(ctx, &where, "where", reference); err != nil {
			return errors.Join(err, down())
		}
		received := int64(-1)
		for _, r := range where.Regions {
			if r.Region == targetRegion && r.Version == i+1 && r.Verified {
				received = r.Received
			}
		}
		if received < 0 {
			return errors.Join(fmt.Errorf("%s has not verified version %d", targetRegion, i+1), down())
		}
		t.Add(version, "`"+strings.Join(args[:2], " ")+"`", took.Seconds(), float64(received)/mib)
	}
	c.tables = append(c.tables, t)
	return down()
}
