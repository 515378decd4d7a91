package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/ovf"
	"github.com/tombolo-vdc/tombolo/handlers/region/disks"
)

// brought is an environment in files: what it consists of, and its disks.
type brought struct {
	graph    graph.Graph
	disks    map[string]diskSource
	findings []graph.Finding
	signer   *signedBy
	close    func() error
}

// signedBy is who signed a package's manifest.
type signedBy struct {
	Subject     string    `json:"subject"`
	Issuer      string    `json:"issuer"`
	Fingerprint string    `json:"fingerprint"` // SHA-256 of the certificate, in hexadecimal
	NotBefore   time.Time `json:"not_before"`
	NotAfter    time.Time `json:"not_after"`
	Trusted     bool      `json:"trusted"`
}

func (a *app) envImport(one shape) *cobra.Command {
	var at, name, roots string
	c := a.verb("import FILE --region R", "Make an environment of an OVF package, a disk image, or a folder that env export wrote", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if at == "" {
			return usage("env import needs --region")
		}
		c, err := a.ready()
		if err != nil {
			return err
		}
		if name == "" {
			if name, err = nameOf(args[0]); err != nil {
				return err
			}
		}
		from, err := a.bring(ctx, args[0], roots)
		if err != nil {
			return err
		}
		defer from.close()
		if a.dryRun {
			return a.showBrought(from)
		}
		return c.importAll(ctx, from, at, name, one)
	})
	c.Flags().StringVar(&at, "region", "", "where it is made")
	c.Flags().StringVar(&name, "name", "", "its name; the file's own if none is given")
	c.Flags().StringVar(&roots, "trust", "", "PEM file with the certificates that must vouch for a package's signer; without it a signature must be right, and the signer is named")
	return a.planned(c)
}

// showBrought shows what would be made, and makes nothing.
func (a *app) showBrought(from brought) error {
	b, err := json.Marshal(map[string]any{"graph": from.graph, "findings": from.findings, "signer": from.signer})
	if err != nil {
		return err
	}
	return a.show(b, shape{items: "graph.nodes", name: "id", columns: nodeColumns})
}

// nameOf is what a package is called where nobody says it.
func nameOf(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	base := filepath.Base(path)
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return base, nil
	}
	return strings.TrimSuffix(base, filepath.Ext(base)), nil
}

// importEnvironment makes the environment and gives its id. If its disks cannot
// all be sent, nothing of it stays.
func (c *client) importEnvironment(ctx context.Context, from brought, at, name string) (string, error) {
	_, accepted, err := c.write(ctx, http.MethodPost, "/v1/environments", map[string]any{"region": at, "name": name, "graph": from.graph})
	if err != nil {
		return "", err
	}
	if err := c.upload(ctx, accepted.ID, from.disks); err != nil {
		return "", c.abandon(ctx, accepted.ID, err)
	}
	return accepted.ID, c.await(ctx, accepted.Operation)
}

func (a *app) templateImport(one shape) *cobra.Command {
	var name, number, roots string
	var regions []string
	c := a.verb("import FILE --name NAME --regions A,B", "Make a template of an OVF package, a disk image, or a folder that an export wrote", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		switch {
		case name == "" || len(regions) == 0:
			return usage("template import needs --name and --regions")
		case a.noWait || !a.wait:
			return usage("template import waits: it saves an environment, and deletes it after")
		}
		c, err := a.ready()
		if err != nil {
			return err
		}
		from, err := a.bring(ctx, args[0], roots)
		if err != nil {
			return err
		}
		defer from.close()
		if a.dryRun {
			return a.showBrought(from)
		}
		id, err := c.importEnvironment(ctx, from, regions[0], name)
		if err != nil {
			return err
		}
		if a.key != "" {
			a.key += "-template" // another command than the environment's
		}
		body := map[string]any{"environment": id, "region": regions[0], "name": name, "regions": regions}
		if number != "" {
			body["number"] = number
		}
		_, accepted, err := c.write(ctx, http.MethodPost, "/v1/templates", body)
		if err == nil {
			err = c.await(ctx, accepted.Operation)
		}
		if err = c.abandon(ctx, id, err); err != nil {
			return err
		}
		b, err := c.read(ctx, templatePath(accepted.ID), nil)
		if err != nil {
			return err
		}
		return a.show(b, one)
	})
	f := c.Flags()
	f.StringVar(&name, "name", "", "as people call it")
	f.StringVar(&number, "number", "", "eight digits; chosen by Tombolo unless given")
	f.StringSliceVar(&regions, "regions", nil, "that should hold it; it is taken in by the first")
	f.StringVar(&roots, "trust", "", "PEM file with the certificates that must vouch for a package's signer")
	return a.planned(c)
}

// importAll makes the environment and shows it.
func (c *client) importAll(ctx context.Context, from brought, at, name string, one shape) error {
	id, err := c.importEnvironment(ctx, from, at, name)
	if err != nil {
		return err
	}
	b, err := c.read(ctx, envPath(id), nil)
	if err != nil {
		return err
	}
	var shown map[string]json.RawMessage
	if err := json.Unmarshal(b, &shown); err != nil {
		return err
	}
	if shown["findings"], err = json.Marshal(from.findings); err != nil {
		return err
	}
	if shown["signer"], err = json.Marshal(from.signer); err != nil {
		return err
	}
	if b, err = json.Marshal(shown); err != nil {
		return err
	}
	return c.app.show(b, one)
}

// bring opens what is to be imported and verifies it. What a region has bound is
// left to the region that it comes to; digests belong to the place they are from.
func (a *app) bring(ctx context.Context, path, roots string) (out brought, err error) {
	trusted, err := trustedRoots(roots)
	if err != nil {
		return out, err
	}
	if _, err := os.Stat(path); err != nil {
		return out, fail(exitError, "file-unreadable", "what is to be imported cannot be read: %v", err).withNext("name an OVF package, a disk image, or a folder that env export wrote")
	}
	if _, stat := os.Stat(filepath.Join(path, graphFile)); stat == nil {
		if trusted != nil {
			return out, usage("--trust: %s is a folder that env export wrote, which nobody signs", path)
		}
		out, err = bringFolder(path)
	} else {
		out, err = a.bringPackage(ctx, path, trusted)
	}
	if err != nil {
		return out, err
	}
	if out.findings == nil {
		out.findings = []graph.Finding{}
	}
	if out.graph.Edges == nil {
		out.graph.Edges = []graph.Edge{}
	}
	for i := range out.graph.Nodes {
		n := &out.graph.Nodes[i]
		for k := range n.Items {
			n.Items[k].Digest = ""
		}
		for k := range n.Resources {
			r := &n.Resources[k]
			if r.Value == "" {
				continue
			}
			out.findings = append(out.findings, graph.Finding{Code: "value-left-to-region", Path: "nodes/" + n.ID + "/resources/" + r.ID,
				Text: fmt.Sprintf("was %s where it comes from; its new region gives it one of its own", r.Value)})
			r.Value = ""
		}
	}
	// The tables of all disks are read before anything is made.
	for name, d := range out.disks {
		if err := readable(ctx, d); err != nil {
			out.close()
			return brought{}, fmt.Errorf("disk %s: %w", name, err)
		}
	}
	a.findings(out.findings)
	if s := out.signer; s != nil {
		a.say("signed by %s (SHA-256 of the certificate %s)", s.Subject, s.Fingerprint)
	}
	return out, nil
}

func readable(ctx context.Context, d diskSource) error {
	content, err := d.Open(ctx)
	if err != nil {
		return err
	}
	defer content.Close()
	for _, err := range content.Extents(ctx) {
		if err != nil {
			return err
		}
	}
	return nil
}

// trustedRoots reads certificates; no file means none are demanded.
func trustedRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fail(exitError, "file-unreadable", "the certificates cannot be read: %v", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fail(exitError, "certificate-invalid", "%s holds no certificate", path)
	}
	return pool, nil
}

func (a *app) bringPackage(ctx context.Context, path string, trusted *x509.CertPool) (brought, error) {
	p, err := ovf.Open(ctx, path, ovf.Options{ScratchDir: a.env("TMPDIR"), Roots: trusted, Now: time.Now()})
	if err != nil {
		return brought{}, err
	}
	g, all, findings := p.Graph()
	out := brought{graph: g, disks: map[string]diskSource{}, findings: findings, close: p.Close}
	if s := p.Signer(); s != nil {
		out.signer = &signedBy{s.Subject, s.Issuer, s.Fingerprint, s.NotBefore, s.NotAfter, s.Trusted}
	}
	for i, d := range all {
		out.disks[d.Name()] = packedDisk{p, i}
	}
	return out, nil
}

// bringFolder opens what env export wrote.
func bringFolder(path string) (brought, error) {
	out := brought{disks: map[string]diskSource{}, close: func() error { return nil }}
	b, err := os.ReadFile(filepath.Join(path, graphFile))
	if err != nil {
		return out, err
	}
	if err := json.Unmarshal(b, &out.graph); err != nil {
		return out, fail(exitError, "graph-invalid", "%s is not a graph: %v", filepath.Join(path, graphFile), err)
	}
	if wrong := out.graph.Structure(); len(wrong) > 0 { // names of nodes become names of files below
		f := fail(exitError, "graph-invalid", "the graph of %s does not hang together; nothing was done", path)
		for _, w := range wrong {
			f.Findings = append(f.Findings, api.Finding(w))
		}
		return out, f
	}
	for _, d := range out.graph.Disks() {
		image := filepath.Join(path, imageName(d.Name()))
		info, err := os.Stat(image)
		switch {
		case err != nil:
			return out, fail(exitError, "disk-missing", "disk %s: %v", d.Name(), err)
		case !info.Mode().IsRegular() || info.Size() != d.Size:
			return out, fail(exitError, "disk-size-differs", "%s is not a file of the %d bytes that the graph says", image, d.Size)
		}
		out.disks[d.Name()] = localDisk{image, disks.Raw, info}
	}
	return out, nil
}
