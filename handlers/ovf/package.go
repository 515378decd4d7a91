// Package ovf reads and writes virtual machines in the Open Virtualization Format of the DMTF (DSP0243, versions 1.x and
// 2.x): a descriptor in XML, disks, a manifest of digests and a certificate, in a folder or in one tar archive, an OVA.
// Clause numbers in comments are those of DSP0243 1.1.1.
//
// Open reads a package and Graph gives what it means here; Write makes a package of a graph and its disks. A bare disk
// image is taken for a package of one machine with one disk.
//
// A package comes from a stranger. Its archive is never unpacked, its names never lead out of it, no entity of its XML
// is expanded, and nothing is fetched from elsewhere. What is refused is refused with a code, before anything is kept.
package ovf

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/disks"
)

// Limits bound what a package may ask for; zero means the default.
type Limits struct {
	Descriptor int64 // bytes of the descriptor, the manifest and the certificate each; 16 MiB
	Entries    int   // files in an archive; 4096
	Disk       int64 // bytes of a disk as the machine sees it; 16 TiB
	Scratch    int64 // bytes that one compressed disk may take when it is unpacked; 1 TiB
}

func (l Limits) orDefault() Limits {
	if l.Descriptor <= 0 {
		l.Descriptor = 16 << 20
	}
	if l.Entries <= 0 {
		l.Entries = 4096
	}
	if l.Disk <= 0 {
		l.Disk = 16 << 40
	}
	if l.Scratch <= 0 {
		l.Scratch = 1 << 40
	}
	return l
}

// Options of Open; the zero value verifies everything against the manifest.
type Options struct {
	Limits
	// Diskless takes the descriptor alone: disks that have a file are left out, each with a finding, and files need not
	// be there.
	Diskless bool
	// Roots are whom signatures are trusted from. If it is nil a signature must be right, and its signer is reported.
	Roots *x509.CertPool
	// Now is the time at which certificates must be valid; needed with Roots.
	Now time.Time
	// ScratchDir is where compressed disks are unpacked; the system's folder for temporary files if it is empty.
	ScratchDir string
	// Progress is told how many bytes were verified, of how many.
	Progress func(done, total int64)
}

// Package is an open package. Close it when its disks are no longer read.
type Package struct {
	options   Options
	files     container
	graph     graph.Graph
	disks     []Disk
	findings  []graph.Finding
	signer    *Signer
	listed    map[string]digest
	verified  map[string]stamp
	bareImage string
}

// Open opens a folder with one descriptor, a descriptor in its folder, an OVA, or a bare disk image, and verifies it: the
// descriptor is understood, every file that it names is there, the manifest, where there is one, lists all of them with
// the right digests, and the certificate, where there is one, signs the manifest. Disks are read once for it.
//
// Errors: the codes of this package and those of handlers/region/disks, and those of reading files.
func Open(ctx context.Context, name string, options Options) (*Package, error) {
	options.Limits = options.orDefault()
	p := &Package{options: options, verified: map[string]stamp{}}
	if err := p.open(ctx, name); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// Close closes the package's files.
func (p *Package) Close() error {
	if p.files == nil {
		return nil
	}
	return p.files.close()
}

// Graph gives what the package means: nodes and edges, the disks that belong to them, and what was left out or seems
// wrong without being refused.
func (p *Package) Graph() (graph.Graph, []Disk, []graph.Finding) {
	return p.graph, p.disks, p.findings
}

// Signer is who signed the package, nil if nobody did.
func (p *Package) Signer() *Signer { return p.signer }

func (p *Package) open(ctx context.Context, name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return err
	}
	descriptor, dir := "", name
	if !info.IsDir() {
		if !info.Mode().IsRegular() {
			return refuse(CodeEntryType, "%q is not a plain file", name)
		}
		if strings.EqualFold(filepath.Ext(name), ".ovf") {
			descriptor, dir = filepath.Base(name), filepath.Dir(name)
		} else {
			return p.openFile(ctx, name)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	p.files = folder{root}
	if descriptor == "" {
		list, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		var names []string
		for _, e := range list {
			names = append(names, e.Name())
		}
		if descriptor, err = descriptorName(names); err != nil {
			return err
		}
	}
	return p.read(ctx, descriptor)
}

// openFile tells an archive from a bare image by its first block.
func (p *Package) openFile(ctx context.Context, name string) error {
	file, err := os.Open(name)
	if err != nil {
		return err
	}
	head := make([]byte, 512)
	n, err := file.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return errors.Join(err, file.Close())
	}
	if isTar := bytes.HasPrefix(head[257:], []byte("ustar")); !isTar && !strings.EqualFold(filepath.Ext(name), ".ova") {
		if err := file.Close(); err != nil {
			return err
		}
		return p.openBare(name, head[:n])
	}
	a, err := openArchive(ctx, file, p.options.Limits)
	if err != nil {
		return errors.Join(err, file.Close())
	}
	p.files = a
	descriptor, err := descriptorName(a.order)
	if err != nil {
		return err
	}
	return p.read(ctx, descriptor)
}

// openBare takes a disk image for a machine with one disk.
func (p *Package) openBare(name string, head []byte) error {
	if t := bytes.TrimLeft(head, "\xEF\xBB\xBF \r\n\t"); bytes.HasPrefix(t, []byte("<?xml")) {
		return refuse(CodeNotEnvelope, "%q is XML: a descriptor's name ends in .ovf", name)
	}
	root, err := os.OpenRoot(filepath.Dir(name))
	if err != nil {
		return err
	}
	p.files, p.bareImage = folder{root}, filepath.Base(name)
	s, err := p.files.open(p.bareImage)
	if err != nil {
		return err
	}
	defer s.Close()
	image, err := disks.Open(s, s.size, disks.Options{MaxSize: p.options.Disk})
	if err != nil {
		return err
	}
	p.verified[p.bareImage] = s.born
	title := strings.TrimSuffix(p.bareImage, filepath.Ext(p.bareImage))
	id := token(title, "machine", map[string]bool{})
	p.graph.Nodes = []graph.Node{{ID: id, Type: graph.Machine, Name: title, Power: graph.Running,
		Items: []graph.Item{{Name: "disk", Class: graph.ProductionData, Kind: graph.Disk, Size: image.Size()}}}}
	p.disks = []Disk{{Node: id, Item: "disk", File: p.bareImage, Size: image.Size(), Kind: image.Format(), ref: fileRef{href: p.bareImage, size: s.size}}}
	if wrong := p.graph.Structure(); len(wrong) > 0 {
		return refuse(CodeInvalid, "%s: %s", wrong[0].Path, wrong[0].Text)
	}
	return nil
}

// whole reads a small file of the package.
func (p *Package) whole(name string) ([]byte, error) {
	s, err := p.files.open(name)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if s.size > p.options.Descriptor {
		return nil, refuse(CodeDescriptorSize, "%q has %d bytes, %d are allowed", name, s.size, p.options.Descriptor)
	}
	data := make([]byte, s.size)
	if n, err := s.ReadAt(data, 0); n < len(data) {
		return nil, refuseFor(err, CodeFileChanged, "%q ended after %d of %d bytes", name, n, len(data))
	}
	return data, nil
}

func (p *Package) has(name string) (bool, error) {
	_, err := p.files.stat(name)
	var refused *Error
	if errors.As(err, &refused) && refused.Code == CodeFileMissing {
		return false, nil
	}
	return err == nil, err
}

// read reads descriptor, manifest and certificate, which share their name but for the ending (DSP0243 5.1).
func (p *Package) read(ctx context.Context, name string) error {
	data, err := p.whole(name)
	if err != nil {
		return err
	}
	d, err := readDescriptor(data)
	if err != nil {
		return err
	}
	c, err := convert(d, p.options.Diskless)
	if err != nil {
		return err
	}
	p.graph, p.disks = c.graph, c.disks
	if err := p.restore(d); err != nil {
		return err
	}
	p.findings = d.findings
	base := strings.TrimSuffix(name, path.Ext(name))
	if err := p.seals(base+".mf", base+".cert"); err != nil {
		return err
	}
	files, total, err := p.inventory(d, name, base)
	if err != nil {
		return err
	}
	if err := p.verify(ctx, files, total, map[string][]byte{name: data}); err != nil {
		return err
	}
	return p.probe()
}

// seals reads manifest and certificate, if they are there.
func (p *Package) seals(manifest, certificate string) error {
	mf, err := p.has(manifest)
	if err != nil {
		return err
	}
	cert, err := p.has(certificate)
	if err != nil {
		return err
	}
	if !mf {
		if cert {
			return refuse(CodeFileMissing, "there is a certificate, but not the manifest %q that it signs", manifest)
		}
		p.findings = append(p.findings, graph.Finding{Code: FoundNoManifest, Path: manifest, Text: "there is no manifest: nothing says whether the files are as they were made"})
		return nil
	}
	data, err := p.whole(manifest)
	if err != nil {
		return err
	}
	if p.listed, err = parseManifest(data); err != nil {
		return err
	}
	for _, d := range p.listed {
		if d.algorithm == crypto.SHA1 {
			p.findings = append(p.findings, graph.Finding{Code: FoundWeakDigest, Path: manifest, Text: "digests are SHA-1: they show accidents, not intent"})
			break
		}
	}
	if !cert {
		if p.options.Roots != nil {
			return refuse(CodeSignerUntrusted, "the package is not signed, and only those of given signers are taken")
		}
		return nil
	}
	signature, err := p.whole(certificate)
	if err != nil {
		return err
	}
	p.signer, err = verifyCertificate(signature, data, path.Base(manifest), p.options.Roots, p.options.Now)
	return err
}

// inventory lists the files that belong to the package, beside manifest and certificate, and checks that all are there.
func (p *Package) inventory(d *descriptor, name, base string) (files []string, total int64, err error) {
	if p.listed == nil && p.options.Roots != nil {
		return nil, 0, refuse(CodeSignerUntrusted, "the package is not signed, and only those of given signers are taken")
	}
	want := map[string]bool{name: true}
	for _, id := range d.order {
		f := d.files[id]
		switch {
		case p.options.Diskless:
			continue
		case f.remote():
			return nil, 0, refuse(CodeHref, "file %q is somewhere else and is not fetched: put it beside the descriptor, or import without disks", f.href)
		case f.outside != nil:
			return nil, 0, f.outside
		}
		parts, err := p.parts(f)
		if err != nil {
			return nil, 0, err
		}
		for _, part := range parts {
			want[part] = true
		}
	}
	for listed := range p.listed {
		if here, err := p.has(listed); err != nil {
			return nil, 0, err
		} else if here {
			want[listed] = true
		} else if !p.options.Diskless {
			return nil, 0, refuse(CodeFileMissing, "the manifest lists %q, which is not in the package", listed)
		}
	}
	for _, n := range p.files.names() {
		if n != base+".mf" && n != base+".cert" {
			want[n] = true
		}
	}
	for n := range want {
		if _, ok := p.listed[n]; p.listed != nil && !ok {
			return nil, 0, refuse(CodeNotListed, "%q is in the package and not in its manifest", n)
		}
		size, err := p.files.stat(n)
		if err != nil {
			return nil, 0, err
		}
		files, total = append(files, n), total+size
	}
	slices.Sort(files)
	return files, total, nil
}

// parts are the files that hold a reference: itself, or the numbered ones that it was cut into (DSP0243 7.1).
func (p *Package) parts(f fileRef) ([]string, error) {
	names := []string{f.href}
	if f.chunk > 0 {
		if f.size < 0 || (f.size+f.chunk-1)/f.chunk > 10_000 {
			return nil, refuse(CodeInvalid, "file %q is in parts of %d bytes: a size is needed, and at most 10000 parts (DSP0243 7.1)", f.href, f.chunk)
		}
		names = nil
		for i := range (f.size + f.chunk - 1) / f.chunk {
			names = append(names, partName(f.href, i))
		}
	}
	var have int64
	for _, n := range names {
		size, err := p.files.stat(n)
		if err != nil {
			return nil, err
		}
		have += size
	}
	if f.size >= 0 && have != f.size {
		return nil, refuse(CodeFileSize, "file %q has %d bytes, the descriptor says %d: it was not received whole, or not with this descriptor", f.href, have, f.size)
	}
	return names, nil
}

// verify reads the files and compares their digests with the manifest. What was read already is judged as it was read.
func (p *Package) verify(ctx context.Context, files []string, total int64, read map[string][]byte) error {
	var done int64
	buf := make([]byte, 1<<20)
	for _, name := range files {
		s, err := p.files.open(name)
		if err != nil {
			return err
		}
		p.verified[name] = s.born
		if p.listed == nil { // nothing to compare with
			if err := s.Close(); err != nil {
				return err
			}
			continue
		}
		var from io.ReaderAt = s
		if data, ok := read[name]; ok {
			from = bytes.NewReader(data)
		}
		h := newHash(p.listed, name)
		for at := int64(0); at < s.size && err == nil; {
			if err = ctx.Err(); err != nil {
				break
			}
			part := buf[:min(int64(len(buf)), s.size-at)]
			var n int
			if n, err = from.ReadAt(part, at); n == len(part) {
				err = nil
			}
			h.Write(part[:n])
			at += int64(n)
			if done += int64(n); p.options.Progress != nil {
				p.options.Progress(done, total)
			}
		}
		if err = errors.Join(err, s.Close()); err != nil {
			return err
		}
		if got := h.Sum(nil); !bytes.Equal(got, p.listed[name].value) {
			return refuse(CodeDigest, "%q has the %s digest %x, the manifest says %x: the file is not the one that was packed", name, p.listed[name].algorithm, got, p.listed[name].value)
		}
	}
	return nil
}
