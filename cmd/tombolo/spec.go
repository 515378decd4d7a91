package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"github.com/goccy/go-yaml"

	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/fault"
	"github.com/tombolo-vdc/tombolo/handlers/region/disks"
)

// spec is an environment's file, ready to be sent.
type spec struct {
	body    map[string]any
	checked []byte // what the server says of it
	disks   map[string]diskSource
}

// readSpec reads a file, takes the disks' sizes from their files, and has the
// server look at it. Everything that is wrong is told at once.
func (c *client) readSpec(ctx context.Context, file string) (spec, error) {
	s := spec{disks: map[string]diskSource{}}
	b, err := os.ReadFile(file)
	if err != nil {
		return s, fail(exitError, "file-unreadable", "the environment's file cannot be read: %v", err).withNext("tombolo env init writes a sample")
	}
	if err := decodeYAML(file, b, &s.body); err != nil {
		if f := new(failure); errors.As(err, &f) {
			return s, f
		}
		return s, fail(exitError, "yaml-invalid", "%s is not YAML:\n%s", file, yaml.FormatError(err, false, true))
	}
	findings := s.takeDisks(ctx, filepath.Dir(file))
	said, err := c.check(ctx, s.body)
	var f *failure
	if errors.As(err, &f) && len(f.Findings) > 0 {
		findings = append(findings, f.Findings...)
	} else if err != nil {
		return s, err
	}
	s.checked = said
	var checked api.Checked
	if said != nil {
		if err := json.Unmarshal(said, &checked); err != nil {
			return s, err
		}
		findings = append(findings, checked.Findings...)
	}
	if len(findings) > 0 {
		f := fail(exitError, "environment-invalid", "%s cannot be made, for %s; nothing was done", file, count(len(findings), "reason"))
		f.Findings = findings
		return s, f.withNext("tombolo env schema says what may stand there")
	}
	return s, nil
}

func count(n int, what string) string {
	if n == 1 {
		return "one " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (c *client) check(ctx context.Context, body map[string]any) ([]byte, error) {
	b, _, err := c.write(ctx, http.MethodPost, "/v1/check/environment", body)
	return b, err
}

// takeDisks finds each disk's file and writes its size beside it.
func (s *spec) takeDisks(ctx context.Context, dir string) []api.Finding {
	var out []api.Finding
	for _, kind := range []string{"machines", "datastores"} {
		nodes, _ := s.body[kind].([]any)
		for i, n := range nodes {
			node, _ := n.(map[string]any)
			given, _ := node["disks"].([]any)
			for k, d := range given {
				disk, ok := d.(map[string]any)
				if !ok {
					continue // the server says what is wrong with it
				}
				where := fmt.Sprintf("%s[%d].disks[%d]", kind, i, k)
				format, _ := disk["format"].(string)
				if !slices.Contains([]disks.Format{"", disks.Raw, disks.QCOW2, disks.VMDK}, disks.Format(format)) {
					disk["bytes"] = unknownSize
					continue // the server says which there are
				}
				local, bytes, err := findDisk(ctx, dir, disk, disks.Format(format))
				if err != nil {
					finding := api.Finding{Code: "disk-missing", Path: where, Text: "file: " + err.Error()}
					if known, ok := errors.AsType[fault.Known](err); ok {
						code, text, _ := known.Tell()
						finding.Code, finding.Text = code, fmt.Sprintf("file: %v: %s", disk["file"], text)
					}
					out = append(out, finding)
					disk["bytes"] = unknownSize
					continue
				}
				disk["bytes"] = bytes
				s.disks[fmt.Sprintf("%v/%v", node["name"], disk["name"])] = local
			}
		}
	}
	return out
}

// unknownSize stands for the size of a disk that is not there, so that the
// server says only what else is wrong.
const unknownSize = 512

// findDisk finds a disk's file and gives the size that a machine sees. All its tables are read.
func findDisk(ctx context.Context, dir string, disk map[string]any, format disks.Format) (localDisk, int64, error) {
	name, _ := disk["file"].(string)
	if name == "" {
		return localDisk{}, 0, errors.New("says nothing: which file has the disk's content?")
	}
	path := name
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, name)
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return localDisk{}, 0, err
	case !info.Mode().IsRegular():
		return localDisk{}, 0, fmt.Errorf("%s is not a regular file", path)
	case info.Size() == 0:
		return localDisk{}, 0, fmt.Errorf("%s is empty", path)
	}
	local := localDisk{path, format, info}
	content, err := local.open()
	if err != nil {
		return localDisk{}, 0, err
	}
	defer content.Close()
	for _, err := range content.Extents(ctx) {
		if err != nil {
			return localDisk{}, 0, err
		}
	}
	return local, content.Size(), nil
}
