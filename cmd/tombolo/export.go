package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/ovf"
	"github.com/tombolo-vdc/tombolo/handlers/region"
	"github.com/tombolo-vdc/tombolo/handlers/region/disks"
	"github.com/tombolo-vdc/tombolo/projections"
)

// written is what an export has made.
type written struct {
	Environment events.EnvironmentID `json:"environment,omitempty"`
	Template    events.TemplateID    `json:"template,omitempty"`
	Version     int                  `json:"version,omitempty"`
	Region      events.RegionID      `json:"region"`
	Taken       string               `json:"taken_at"`
	Format      string               `json:"format"`
	To          string               `json:"to"`
	Disks       []writtenDisk        `json:"disks"`
	Findings    []graph.Finding      `json:"findings"`
}

type writtenDisk struct {
	Disk   string        `json:"disk"`
	File   string        `json:"file"` // in the folder, or the archive and its entry
	Bytes  int64         `json:"bytes"`
	Digest events.Digest `json:"digest"`
}

// target is where an export goes, and how.
type target struct {
	to, format       string
	key, certificate string // files; of ovf and ova
	options          ovf.WriteOptions
}

func (t *target) flags(c *cobra.Command) {
	c.Flags().StringVar(&t.to, "to", "", "folder, or archive for ova")
	c.Flags().StringVar(&t.format, "format", "", "raw (a sparse image for each disk, the graph, and a file for env create), ovf or ova; ova if --to ends so, else raw")
	c.Flags().StringVar(&t.key, "key", "", "PEM file with the private key (RSA or ECDSA) that signs an ovf or ova")
	c.Flags().StringVar(&t.certificate, "certificate", "", "PEM file with the key's certificate and those that vouch for it")
}

func (t *target) check(verb string) error {
	if t.to == "" {
		return usage("%s needs --to", verb)
	}
	isArchive := strings.EqualFold(filepath.Ext(t.to), ".ova")
	switch {
	case t.format == "" && isArchive:
		t.format = "ova"
	case t.format == "":
		t.format = "raw"
	case t.format != "raw" && t.format != "ovf" && t.format != "ova":
		return usage("--format %s: raw, ovf or ova", t.format)
	case (t.format == "ova") != isArchive:
		return usage("--format %s and --to %s do not go together: an archive's name ends in .ova, a folder's does not", t.format, t.to)
	}
	if err := t.sign(); err != nil {
		return err
	}
	var err error
	t.to, err = filepath.Abs(t.to)
	return err
}

// fileOf is where a disk is written.
func (t *target) fileOf(g graph.Graph, disk string) string {
	if t.format == "raw" {
		return imageName(disk)
	}
	file := t.options.DiskFile(t.to, slices.IndexFunc(g.Disks(), func(d graph.DiskRef) bool { return d.Name() == disk }))
	if t.format == "ova" {
		return filepath.Base(t.to) + "/" + file
	}
	return file
}

// sign reads what packages are signed with, if they are to be.
func (t *target) sign() error {
	switch {
	case t.key == "" && t.certificate == "":
		return nil
	case t.key == "" || t.certificate == "":
		return usage("--key and --certificate belong together")
	case t.format == "raw":
		return usage("only ovf and ova can be signed")
	}
	pair, err := tls.LoadX509KeyPair(t.certificate, t.key)
	if err != nil {
		return fail(exitError, "signer-unusable", "the key and its certificate cannot be used: %v", err)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return fail(exitError, "signer-unusable", "%s is no key that signs", t.key)
	}
	t.options.Signer = signer
	for _, der := range pair.Certificate {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fail(exitError, "signer-unusable", "%s: %v", t.certificate, err)
		}
		t.options.Chain = append(t.options.Chain, c)
	}
	return nil
}

func (a *app) envExport() *cobra.Command {
	var t target
	var in string
	c := a.verb("export ENV --to DIR", "Write its disks and its graph into files, as they are at one moment", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if err := t.check("env export"); err != nil {
			return err
		}
		c, err := a.ready()
		if err != nil {
			return err
		}
		query := map[string][]string{}
		if in != "" {
			query["region"] = []string{in}
		}
		b, err := c.read(ctx, envPath(args[0]), query)
		if err != nil {
			return err
		}
		var e api.OneEnvironment
		if err := json.Unmarshal(b, &e); err != nil {
			return err
		}
		return c.export(ctx, string(e.Region), region.ExportRequest{Environment: e.ID}, e.Display, t)
	})
	t.flags(c)
	c.Flags().StringVar(&in, "region", "", "where it is, if several regions have the name")
	return c
}

func (a *app) templateExport() *cobra.Command {
	var t target
	var in string
	c := a.verb("export REF --to DIR", "Write a version's disks and graph into files, from a region that holds it", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if err := t.check("template export"); err != nil {
			return err
		}
		c, err := a.ready()
		if err != nil {
			return err
		}
		b, err := c.read(ctx, templatePath(args[0]), nil)
		if err != nil {
			return err
		}
		var one api.OneTemplate
		if err := json.Unmarshal(b, &one); err != nil {
			return err
		}
		if in == "" {
			if in, err = c.holder(ctx, args[0], one.Version); err != nil {
				return err
			}
		}
		return c.export(ctx, in, region.ExportRequest{Template: one.Number, Version: one.Version}, one.Display, t)
	})
	t.flags(c)
	c.Flags().StringVar(&in, "region", "", "which region's copy is read; the first that has verified it")
	return c
}

// holder is a region that has verified the version.
func (c *client) holder(ctx context.Context, ref string, version int) (string, error) {
	b, err := c.read(ctx, templatePath(ref)+"/where", nil)
	if err != nil {
		return "", err
	}
	var where projections.WhereAnswer
	if err := json.Unmarshal(b, &where); err != nil {
		return "", err
	}
	for _, i := range where.Regions {
		if i.Version == version && i.Verified {
			return string(i.Region), nil
		}
	}
	return "", fail(exitError, "instance-not-here", "no region holds a verified copy of version %d of %s", version, ref).withNext("tombolo where %s", ref)
}

// export reads everything out of a region and shows what was written.
func (c *client) export(ctx context.Context, at string, ask region.ExportRequest, name string, t target) error {
	e, err := c.openExport(ctx, at, ask)
	if err != nil {
		return err
	}
	defer e.close(ctx)
	var lost []graph.Finding
	e.Graph, lost = e.Graph.WithoutMemory()
	m := newMeter(c.app, e.Region, "downloading")
	open := map[string]*remoteDisk{}
	for _, d := range e.Disks {
		if open[d.Disk], err = e.disk(ctx, d, m); err != nil {
			return err
		}
		for _, x := range open[d.Disk].extents {
			m.total += x.Length
		}
	}
	out := written{Environment: e.Environment, Template: e.Template, Version: e.Version, Region: e.Region, Taken: e.Taken.Format("2006-01-02T15:04:05.000Z07:00"),
		Format: t.format, To: t.to, Disks: []writtenDisk{}}
	for _, d := range e.Disks {
		w := writtenDisk{Disk: d.Disk, Bytes: d.Bytes, Digest: d.Digest}
		w.File = t.fileOf(e.Graph, d.Disk)
		out.Disks = append(out.Disks, w)
	}
	if t.format == "raw" {
		out.Findings, err = writeFolder(ctx, t.to, name, e, open)
	} else {
		content := map[string]ovf.Source{}
		for disk, d := range open {
			content[disk] = d
		}
		err = ovf.Write(ctx, t.to, e.Graph, content, t.options)
	}
	if err != nil {
		return err
	}
	out.Findings = append(append([]graph.Finding{}, lost...), out.Findings...)
	c.app.findings(out.Findings)
	b, err := json.Marshal(out)
	if err != nil {
		return err
	}
	return c.app.show(b, shape{items: "disks", name: "disk", columns: []column{{"DISK", "disk", false}, {"FILE", "file", false}, {"BYTES", "bytes", false}, {"DIGEST", "digest", true}}})
}

// findings tells what was done with a reservation.
func (a *app) findings(all []graph.Finding) {
	for _, f := range all {
		a.say("note: %s: %s (%s)", f.Path, f.Text, f.Code)
	}
}

// The files of a folder beside the disks' images.
const (
	graphFile = "graph.json"
	specFile  = "environment.yaml"
)

func imageName(disk string) string { return strings.ReplaceAll(disk, "/", ".") + ".img" }

// writeFolder writes the disks, the graph, and a file that env create takes; the
// last one says that the folder is whole. Of a failed export nothing stays.
func writeFolder(ctx context.Context, dir, name string, e *exported, open map[string]*remoteDisk) (lost []graph.Finding, err error) {
	spec, lost, err := specification(e.Graph, name)
	if err != nil {
		return nil, err
	}
	described, err := json.MarshalIndent(e.Graph, "", "  ")
	if err != nil {
		return nil, err
	}
	_, stat := os.Stat(dir)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, err
	}
	var made []string
	defer func() {
		if err == nil {
			return
		}
		for _, path := range made {
			err = errors.Join(err, os.Remove(path))
		}
		if errors.Is(stat, os.ErrNotExist) {
			err = errors.Join(err, os.Remove(dir))
		}
	}()
	names := []string{graphFile, specFile}
	for _, d := range e.Disks {
		names = append(names, imageName(d.Disk))
	}
	for _, n := range names {
		if _, err := os.Lstat(filepath.Join(dir, n)); !errors.Is(err, os.ErrNotExist) {
			return nil, fail(exitConflict, "file-exists", "%s is there already", filepath.Join(dir, n)).withNext("name another folder")
		}
	}
	put := func(name string, write func(*os.File) error) error {
		path := filepath.Join(dir, name)
		if err := writeBeside(path, write); err != nil {
			return err
		}
		made = append(made, path)
		return nil
	}
	for _, d := range e.Disks {
		if err := put(imageName(d.Disk), func(f *os.File) error { return open[d.Disk].save(ctx, f) }); err != nil {
			return nil, err
		}
	}
	for _, text := range []struct {
		name string
		body []byte
	}{{graphFile, append(described, '\n')}, {specFile, spec}} {
		if err := put(text.name, func(f *os.File) error { _, err := f.Write(text.body); return err }); err != nil {
			return nil, err
		}
	}
	return lost, syncFolder(dir)
}

// specification is the file for env create; what it has no words for is named
// at its head.
func specification(g graph.Graph, name string) ([]byte, []graph.Finding, error) {
	s, lost := g.Specify(name)
	place := func(node string, all []graph.DiskSpec) {
		for i := range all {
			// The size is the file's. Its format is not for its first bytes to say: the machine has written them.
			all[i].File, all[i].Format, all[i].Size = imageName(node+"/"+all[i].Name), string(disks.Raw), 0
		}
	}
	for _, m := range s.Machines {
		place(m.Name, m.Disks)
	}
	for _, d := range s.Stores {
		place(d.Name, d.Disks)
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, nil, err
	}
	body, err := yaml.JSONToYAML(b)
	if err != nil {
		return nil, nil, err
	}
	var head bytes.Buffer
	fmt.Fprintf(&head, "# tombolo env create -f %s --region REGION makes this environment again.\n# Addresses are those that the region gives; %s has the ones that were.\n", specFile, graphFile)
	for _, f := range lost {
		fmt.Fprintf(&head, "# Not in here: %s: %s\n", f.Path, f.Text)
	}
	if len(lost) > 0 {
		fmt.Fprintf(&head, "# tombolo env import %s --region REGION takes all of it.\n", ".")
	}
	return append(head.Bytes(), body...), lost, nil
}

// writeBeside writes a file under another name and gives it its own once it is
// whole and durable.
func writeBeside(path string, write func(*os.File) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".export-*")
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// save writes the disk as a raw image; what holds no data is a hole.
func (d *remoteDisk) save(ctx context.Context, f *os.File) error {
	if err := f.Truncate(d.size); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	type part struct{ at, length int64 }
	parts := make(chan part)
	var workers sync.WaitGroup
	for range uploadWorkers {
		workers.Go(func() {
			buf := make([]byte, readAhead)
			for p := range parts {
				err := d.fetch(ctx, buf[:p.length], p.at)
				if err == nil {
					_, err = io.NewOffsetWriter(f, p.at).Write(buf[:p.length])
				}
				if err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	for _, e := range d.extents {
		for at := e.Offset; at < e.Offset+e.Length; at += readAhead {
			select {
			case parts <- part{at, min(readAhead, e.Offset+e.Length-at)}:
			case <-ctx.Done():
			}
		}
	}
	close(parts)
	workers.Wait()
	return context.Cause(ctx)
}
