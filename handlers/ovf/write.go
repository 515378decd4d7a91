package ovf

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"crypto"

	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/disks"
)

// WriteOptions say how a package is written.
type WriteOptions struct {
	// Name is the package's: the descriptor is <name>.ovf. The target's own name if it is empty.
	Name string
	// Format of the disks: disks.VMDK (streamOptimized, the default, which every tool reads) or disks.Raw.
	Format disks.Format
	// Signer signs the manifest, with an RSA or ECDSA key; nil: the package is not signed.
	Signer crypto.Signer
	// Chain is the signer's certificate and those that vouch for it.
	Chain []*x509.Certificate
	// Progress is told how many bytes of the disks were written, of how many.
	Progress func(done, total int64)
}

func isArchive(target string) bool { return strings.EqualFold(filepath.Ext(target), ".ova") }

func (o WriteOptions) named(target string) string {
	switch base := filepath.Base(target); {
	case o.Name != "":
		return o.Name
	case isArchive(target):
		return strings.TrimSuffix(base, filepath.Ext(target))
	default:
		return base
	}
}

// DiskFile is the name that Write gives the file of the graph's n-th disk, from 0.
func (o WriteOptions) DiskFile(target string, n int) string {
	return fmt.Sprintf("%s-disk%d%s", o.named(target), n+1, extension(o.Format))
}

// Write makes a package of a graph and its disks, by "<node>/<item>": an archive if the target ends in .ova, else a
// folder. It appears under its name when it is whole; nothing is left behind otherwise. Equal input gives equal bytes.
//
// Open of the package gives the same graph again, because what OVF has no words for is in a section of our own, but for
// the digests of disks, which belong to the place they were stored in, and the memory of suspended machines, which no
// package has: they come back powered off (graph.Graph.WithoutMemory).
//
// Errors: CodeExists, CodeNotExportable, CodeSignerUnusable, those of the disks and of writing.
func Write(ctx context.Context, target string, g graph.Graph, content map[string]Source, options WriteOptions) error {
	if _, err := os.Lstat(target); !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return err
		}
		return refuse(CodeExists, "%q is there already: name another target, or remove it", target)
	}
	options.Name = options.named(target)
	scratch, err := os.MkdirTemp(filepath.Dir(target), ".tombolo-ovf-*")
	if err != nil {
		return err
	}
	err = write(ctx, scratch, target, isArchive(target), g, content, options)
	return errors.Join(err, os.RemoveAll(scratch))
}

func write(ctx context.Context, scratch, target string, isArchive bool, g graph.Graph, content map[string]Source, options WriteOptions) error {
	dir := filepath.Join(scratch, "files")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	names, err := writeFiles(ctx, dir, g, content, options)
	if err != nil {
		return err
	}
	if !isArchive {
		return errors.Join(os.Rename(dir, target), syncDir(filepath.Dir(target)))
	}
	file, err := os.Create(filepath.Join(scratch, "archive"))
	if err != nil {
		return err
	}
	err = writeTar(ctx, file, dir, names)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return errors.Join(os.Rename(file.Name(), target), syncDir(filepath.Dir(target)))
}

// Stream writes an archive to where it cannot be sought, such as an HTTP answer. The digests stand before the disks, so
// the disks are packed into a folder below scratchDir first, which is removed again.
//
// Errors: as Write.
func Stream(ctx context.Context, to io.Writer, scratchDir string, g graph.Graph, content map[string]Source, options WriteOptions) error {
	scratch, err := os.MkdirTemp(scratchDir, "tombolo-ovf-*")
	if err != nil {
		return err
	}
	if options.Name == "" {
		options.Name = "environment"
	}
	names, err := writeFiles(ctx, scratch, g, content, options)
	if err == nil {
		err = writeTar(ctx, to, scratch, names)
	}
	return errors.Join(err, os.RemoveAll(scratch))
}

// outFile is a disk's file as it was written.
type outFile struct {
	name   string
	size   int64
	digest string // SHA-256, in hexadecimal
}

// writeFiles writes the package's files and gives their names in the order that an archive has them: descriptor,
// manifest, certificate, disks as in References (DSP0243 5.3).
func writeFiles(ctx context.Context, dir string, g graph.Graph, content map[string]Source, options WriteOptions) ([]string, error) {
	if options.Name != filepath.Base(options.Name) || strings.ContainsAny(options.Name, "()=\\\n") || strings.HasPrefix(options.Name, ".") {
		return nil, refuse(CodeNotExportable, "%q cannot be the name of a package", options.Name)
	}
	g, _ = g.WithoutMemory()
	if wrong := g.Structure(); len(wrong) > 0 {
		return nil, refuse(CodeNotExportable, "the graph is wrong: %s: %s", wrong[0].Path, wrong[0].Text)
	}
	if options.Signer != nil {
		if err := checkSigner(options.Signer, options.Chain); err != nil {
			return nil, err
		}
	}
	var total, done int64
	for _, ref := range g.Disks() {
		source, ok := content[ref.Name()]
		switch {
		case !ok:
			return nil, refuse(CodeNotExportable, "the content of disk %q is missing", ref.Name())
		case source.Size() != ref.Size:
			return nil, refuse(CodeNotExportable, "disk %q has %d bytes, the graph says %d", ref.Name(), source.Size(), ref.Size)
		}
		total += ref.Size
	}
	var files []outFile
	for i, ref := range g.Disks() {
		name := options.DiskFile("", i)
		f, err := writeDisk(ctx, filepath.Join(dir, name), content[ref.Name()], options.Format)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", ref.Name(), err)
		}
		f.name = name
		files = append(files, f)
		if done += ref.Size; options.Progress != nil {
			options.Progress(done, total)
		}
	}
	descriptor, err := describe(g, files, options)
	if err != nil {
		return nil, err
	}
	names := []string{options.Name + ".ovf", options.Name + ".mf"}
	sum := sha256.Sum256(descriptor)
	manifest := fmt.Sprintf("SHA256(%s)= %x\n", names[0], sum)
	for _, f := range files {
		manifest += fmt.Sprintf("SHA256(%s)= %s\n", f.name, f.digest)
	}
	if err := errors.Join(writeSynced(filepath.Join(dir, names[0]), descriptor), writeSynced(filepath.Join(dir, names[1]), []byte(manifest))); err != nil {
		return nil, err
	}
	if options.Signer != nil {
		cert, err := certificate(names[1], []byte(manifest), options.Signer, options.Chain)
		if err != nil {
			return nil, err
		}
		names = append(names, options.Name+".cert")
		if err := writeSynced(filepath.Join(dir, names[2]), cert); err != nil {
			return nil, err
		}
	}
	for _, f := range files {
		names = append(names, f.name)
	}
	return names, syncDir(dir)
}

func extension(f disks.Format) string {
	if f == disks.Raw {
		return ".img"
	}
	return ".vmdk"
}

func writeDisk(ctx context.Context, name string, source Source, format disks.Format) (outFile, error) {
	file, err := os.Create(name)
	if err != nil {
		return outFile{}, err
	}
	h := sha256.New()
	switch format {
	case "", disks.VMDK:
		err = writeStreamOptimized(ctx, io.MultiWriter(file, h), source)
	case disks.Raw:
		if err = writeRaw(ctx, file, source); err == nil {
			_, err = io.Copy(h, io.NewSectionReader(file, 0, source.Size()))
		}
	default:
		err = refuse(CodeNotExportable, "disks are written as vmdk or raw, not as %q", format)
	}
	var info fs.FileInfo
	if err == nil {
		info, err = file.Stat()
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return outFile{}, err
	}
	return outFile{size: info.Size(), digest: hex.EncodeToString(h.Sum(nil))}, nil
}

// writeRaw writes a disk byte by byte; what is in no extent is a hole.
func writeRaw(ctx context.Context, file *os.File, source Source) error {
	if err := file.Truncate(source.Size()); err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for e, err := range source.Extents(ctx) {
		if err != nil {
			return err
		}
		for at := e.Offset; at < e.Offset+e.Length; {
			part := buf[:min(int64(len(buf)), e.Offset+e.Length-at)]
			if n, err := source.ReadAt(part, at); n < len(part) {
				return fmt.Errorf("read %d of %d bytes at %d: %w", n, len(part), at, err)
			}
			if !allZero(part) {
				if _, err := file.WriteAt(part, at); err != nil {
					return err
				}
			}
			at += int64(len(part))
		}
	}
	return nil
}

// tarHeader is a file's header: USTAR, which every reader knows, and for 8 GiB and more GNU's sizes in base 256, which
// most of them know.
func tarHeader(name string, size int64) *tar.Header {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	if size >= 8<<30 || len(name) > 100 || strings.ContainsFunc(name, func(r rune) bool { return r > '~' }) {
		h.Format = tar.FormatGNU
	}
	return h
}

func writeTar(ctx context.Context, to io.Writer, dir string, names []string) error {
	out := tar.NewWriter(to)
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		file, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		info, err := file.Stat()
		if err == nil {
			err = out.WriteHeader(tarHeader(name, info.Size()))
		}
		if err == nil {
			_, err = io.Copy(out, file)
		}
		if err = errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
	return out.Close()
}

func writeSynced(name string, data []byte) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
