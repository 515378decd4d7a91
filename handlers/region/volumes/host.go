package volumes

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
)

// Disk says what a volume is made of.
type Disk struct {
	Name string // unique in its environment, for example "web-1/root"
	Base chunks.Digest
	Size int64
}

// Host keeps the volumes of a region's environments in DIR/<environment>/<disk>/ and serves the open ones as NBD exports
// named <environment>/<disk>. It is safe for concurrent use; calls for one environment take turns.
type Host struct {
	dir    string
	cache  *chunks.Cache
	server *nbd.Server

	mu   sync.Mutex
	open map[string]map[string]*Volume // environment, disk
}

// NewHost makes a host; nothing is open yet. Close it before the cache, and after or before the server as is convenient.
func NewHost(dir string, cache *chunks.Cache, server *nbd.Server) *Host {
	return &Host{dir: dir, cache: cache, server: server, open: map[string]map[string]*Volume{}}
}

// path gives the folder of an environment, or of one of its disks.
func (h *Host) path(names ...string) (string, error) {
	path := h.dir
	for _, n := range names {
		e := url.PathEscape(n)
		if e == "" || e == "." || e == ".." || len(e) > 200 {
			return "", errorf(VolumeInvalid, "the name %q", n)
		}
		path = filepath.Join(path, e)
	}
	return path, nil
}

// ExportName is the name under which a disk is served.
func ExportName(environment, disk string) string { return environment + "/" + disk }

// Create makes an environment's volumes, durably, and opens and serves them. A repeat makes what is missing. Errors: those
// of Create and Open.
func (h *Host) Create(ctx context.Context, environment string, disks []Disk) error {
	for _, d := range disks {
		path, err := h.path(environment, d.Name)
		if err != nil {
			return err
		}
		h.mu.Lock()
		v := h.open[environment][d.Name]
		h.mu.Unlock()
		if v != nil && v.Info().Base == d.Base && v.Size() == d.Size {
			continue // a repeat, and in use
		}
		if err := Create(path, d.Base, d.Size); err != nil {
			return err
		}
	}
	return h.Open(ctx, environment)
}

// Disks describes an environment's volumes, sorted by name, open or not. Errors: those of Inspect.
func (h *Host) Disks(environment string) ([]Disk, error) {
	path, err := h.path(environment)
	if err != nil {
		return nil, err
	}
	names, err := list(path)
	if err != nil {
		return nil, err
	}
	var out []Disk
	for _, name := range names {
		i, err := Inspect(filepath.Join(path, url.PathEscape(name)))
		if CodeOf(err) == VolumeMissing {
			continue // not made to the end
		} else if err != nil {
			return nil, err
		}
		out = append(out, Disk{Name: name, Base: i.Base, Size: i.Size})
	}
	return out, nil
}

// Environments lists those that have a folder here, sorted.
func (h *Host) Environments() ([]string, error) { return list(h.dir) }

func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, wrap(IOFailed, err, "list %s", dir)
	}
	var names []string
	for _, e := range entries {
		if name, err := url.PathUnescape(e.Name()); err == nil && e.IsDir() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// Open opens and serves the volumes of an environment that are not open yet. Where one fails, those that it opened are
// closed again. Errors: those of Open; nbd.Server.Add's.
func (h *Host) Open(ctx context.Context, environment string) (err error) {
	disks, err := h.Disks(environment)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	var added []string
	defer func() {
		if err != nil {
			err = errors.Join(err, h.shut(environment, added))
		}
	}()
	for _, d := range disks {
		if h.open[environment][d.Name] != nil {
			continue
		}
		path, err := h.path(environment, d.Name)
		if err != nil {
			return err
		}
		v, err := Open(ctx, path, h.cache)
		if err != nil {
			return err
		}
		if h.open[environment] == nil {
			h.open[environment] = map[string]*Volume{}
		}
		h.open[environment][d.Name] = v
		added = append(added, d.Name)
		if err := h.server.Add(nbd.Export{Name: ExportName(environment, d.Name), Device: v}); err != nil {
			return err
		}
	}
	return nil
}

// shut stops serving disks and closes them; the caller holds mu.
func (h *Host) shut(environment string, disks []string) error {
	var errs []error
	for _, name := range disks {
		v := h.open[environment][name]
		if v == nil {
			continue
		}
		h.server.Remove(ExportName(environment, name))
		errs = append(errs, v.Close())
		delete(h.open[environment], name)
	}
	if len(h.open[environment]) == 0 {
		delete(h.open, environment)
	}
	return errors.Join(errs...)
}

// Volumes gives the open volumes of an environment by name.
func (h *Host) Volumes(environment string) map[string]*Volume {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]*Volume{}
	for name, v := range h.open[environment] {
		out[name] = v
	}
	return out
}

// Freeze takes one moment of all open volumes of an environment; names tells the order of Ingest's results. Errors: those
// of the function Freeze.
func (h *Host) Freeze(ctx context.Context, environment string) (s *Snapshot, names []string, err error) {
	open := h.Volumes(environment)
	var volumes []*Volume
	for name := range open {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		volumes = append(volumes, open[name])
	}
	s, err = Freeze(ctx, volumes...)
	return s, names, err
}

// Shut disconnects the clients of an environment's disks and closes them. Errors: those of Volume.Close.
func (h *Host) Shut(environment string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	names := make([]string, 0, len(h.open[environment]))
	for name := range h.open[environment] {
		names = append(names, name)
	}
	return h.shut(environment, names)
}

// Discard is Shut, and deletes the volumes. A repeat does nothing. Errors: those of Remove.
func (h *Host) Discard(environment string) error {
	path, err := h.path(environment)
	if err != nil {
		return err
	}
	// What cannot be flushed is not wanted any more.
	_ = h.Shut(environment)
	names, err := list(path)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := Remove(filepath.Join(path, url.PathEscape(name))); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(path); err != nil {
		return wrap(IOFailed, err, "remove %s", path)
	}
	return nil
}

// Close shuts all environments. Errors: those of Volume.Close.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	var errs []error
	for environment, disks := range h.open {
		var names []string
		for name := range disks {
			names = append(names, name)
		}
		errs = append(errs, h.shut(environment, names))
	}
	return errors.Join(errs...)
}
