package ovf

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

// container is where the files of a package are: a folder or an archive. Names have passed localName.
type container interface {
	// stat gives a file's length.
	stat(name string) (int64, error)
	// open gives a file's content; the caller closes it.
	open(name string) (section, error)
	// names lists the files that belong to the package, or nil when only the descriptor knows.
	names() []string
	close() error
}

// section is a file of a package: a part of an archive or a file by itself.
type section struct {
	io.ReaderAt
	size int64
	file *os.File // to be closed; nil in an archive
	born stamp
}

func (s section) Close() error {
	if s.file != nil {
		return s.file.Close()
	}
	return nil
}

// stamp tells a file from what was verified.
type stamp struct {
	size    int64
	changed time.Time
}

// folder is a package whose files stand side by side. All is opened below the folder, whatever links there are.
type folder struct {
	root *os.Root
}

func (f folder) stat(name string) (int64, error) {
	s, err := f.open(name)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	return s.size, nil
}

func (f folder) open(name string) (section, error) {
	// A pipe or a device of that name would block or worse: look before opening.
	info, err := f.root.Stat(name)
	if err == nil && !info.Mode().IsRegular() {
		return section{}, refuse(CodeEntryType, "%q is not a plain file", name)
	}
	var file *os.File
	if err == nil {
		file, err = f.root.Open(name)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return section{}, refuse(CodeFileMissing, "%q is not in the package", name)
	}
	if err != nil {
		return section{}, refuseFor(err, CodeFileMissing, "%q cannot be opened", name)
	}
	if info, err = file.Stat(); err == nil && !info.Mode().IsRegular() {
		err = refuse(CodeEntryType, "%q is not a plain file", name)
	}
	if err != nil {
		file.Close()
		return section{}, err
	}
	return section{ReaderAt: file, size: info.Size(), file: file, born: stamp{info.Size(), info.ModTime()}}, nil
}

func (f folder) names() []string { return nil }
func (f folder) close() error    { return f.root.Close() }

// archive is an OVA: a tar file (DSP0243 5.3 in 1.1, 6.4 in 2.1).
type archive struct {
	file    *os.File
	entries map[string]entry
	order   []string
}

type entry struct{ at, size int64 }

// openArchive reads the headers of a tar file. Nothing is unpacked: files are read where they are. What is not a plain
// file, or has no plain name, ends it.
func openArchive(ctx context.Context, file *os.File, limits Limits) (*archive, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	a := &archive{file: file, entries: map[string]entry{}}
	whole := io.NewSectionReader(file, 0, info.Size())
	in := tar.NewReader(whole)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, refuseFor(err, CodeArchiveDamaged, "the archive is not a whole tar file")
		}
		if len(a.order) == limits.Entries {
			return nil, refuse(CodeTooManyEntries, "more than %d files", limits.Entries)
		}
		// The reader stands at the file's first byte, as it reads headers only; it skips by seeking.
		at, err := whole.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		name, err := a.check(h, info.Size()-at)
		if err != nil {
			return nil, err
		}
		a.entries[name] = entry{at, h.Size}
		a.order = append(a.order, name)
	}
	if len(a.order) == 0 {
		return nil, refuse(CodeArchiveDamaged, "the archive is empty, or not a tar file")
	}
	return a, nil
}

// check judges one header; left is how many bytes of the archive follow it.
func (a *archive) check(h *tar.Header, left int64) (string, error) {
	if h.Typeflag != tar.TypeReg {
		return "", refuse(CodeEntryType, "%.80q is of type %q: an OVA holds plain files only", h.Name, h.Typeflag)
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return "", refuse(CodeEntryType, "%.80q is a sparse file: pack it with tar --no-sparse", h.Name)
		}
	}
	// Escapes are of URLs, not of tar: a name is taken as it is.
	name, err := localName(strings.ReplaceAll(h.Name, "%", "%25"))
	if err != nil {
		return "", refuse(CodeEntryName, "%.80q is not the name of a file inside the package", h.Name)
	}
	if _, twice := a.entries[name]; twice {
		return "", refuse(CodeEntryTwice, "the archive holds %q twice", name)
	}
	if h.Size < 0 || h.Size > left {
		return "", refuse(CodeEntryTooLarge, "%q says it has %d bytes, and the archive has %d behind it: it is cut off, or lies", name, h.Size, left)
	}
	return name, nil
}

func (a *archive) stat(name string) (int64, error) {
	e, ok := a.entries[name]
	if !ok {
		return 0, refuse(CodeFileMissing, "%q is not in the archive", name)
	}
	return e.size, nil
}

func (a *archive) open(name string) (section, error) {
	e, ok := a.entries[name]
	if !ok {
		return section{}, refuse(CodeFileMissing, "%q is not in the archive", name)
	}
	info, err := a.file.Stat()
	if err != nil {
		return section{}, err
	}
	return section{ReaderAt: io.NewSectionReader(a.file, e.at, e.size), size: e.size, born: stamp{info.Size(), info.ModTime()}}, nil
}

func (a *archive) names() []string { return a.order }
func (a *archive) close() error    { return a.file.Close() }

// descriptorName finds the package's descriptor among the files. In an archive it is the first one (DSP0243 5.3).
func descriptorName(names []string) (string, error) {
	found := ""
	for _, name := range names {
		if strings.EqualFold(path.Ext(name), ".ovf") {
			if found != "" {
				return "", refuse(CodeManyDescriptors, "%q and %q: a package has one descriptor; name the one that is meant", found, name)
			}
			found = name
		}
	}
	if found == "" {
		return "", refuse(CodeNoDescriptor, "there is no descriptor, a file *.ovf, in the package")
	}
	return found, nil
}
