package volumes

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

const (
	metaName   = "volume.json"
	metaFormat = 1
	// maxSize bounds what is believed of a description: 64 TiB.
	maxSize = 64 << 40
)

// meta is the description of a volume.
type meta struct {
	Format int           `json:"format"`
	Size   int64         `json:"size"`
	Base   chunks.Digest `json:"base,omitempty"` // none: zeros
	Layers []int         `json:"layers"`         // numbers, the top first
}

func (m meta) check() error {
	if m.Size <= 0 || m.Size > maxSize {
		return errorf(VolumeInvalid, "a volume of %d bytes", m.Size)
	}
	if m.Base != "" {
		if _, err := chunks.ParseDigest(string(m.Base)); err != nil {
			return wrap(VolumeInvalid, err, "the base")
		}
	}
	return nil
}

func readMeta(fsys filesystem, dir string) (m meta, err error) {
	f, err := fsys.open(filepath.Join(dir, metaName))
	if errors.Is(err, fs.ErrNotExist) {
		return m, errorf(VolumeMissing, "%s holds no volume", dir)
	} else if err != nil {
		return m, wrap(IOFailed, err, "open the description")
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil || n > 1<<16 {
		return m, wrap(VolumeDamaged, err, "description of %d bytes in %s", n, dir)
	}
	raw := make([]byte, n)
	if err := readFull(f, raw, 0); err != nil {
		return m, wrap(IOFailed, err, "read the description in %s", dir)
	}
	var format struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(raw, &format); err != nil {
		return m, wrap(VolumeDamaged, err, "the description in %s", dir)
	}
	if format.Format != metaFormat {
		return m, errorf(VolumeFormatUnknown, "%s is of format %d, this program knows %d", dir, format.Format, metaFormat)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return m, wrap(VolumeDamaged, err, "the description in %s", dir)
	}
	if err := m.check(); err != nil {
		return m, wrap(VolumeDamaged, err, "the description in %s", dir)
	}
	if len(m.Layers) < 1 || len(m.Layers) > 2 || slices.Min(m.Layers) < 1 {
		return m, errorf(VolumeDamaged, "the description in %s has the layers %v", dir, m.Layers)
	}
	return m, nil
}

func writeMeta(fsys filesystem, dir string, m meta) error {
	m.Format = metaFormat
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	f, err := replaceFile(fsys, filepath.Join(dir, metaName), append(raw, '\n'))
	if err != nil {
		return ioError(err, "write the description in %s", dir)
	}
	return f.Close()
}

// tidy removes what a crash left of layers that the description does not name, and gives the next layer's number.
func tidy(fsys filesystem, dir string, m meta) (next int, err error) {
	names, err := fsys.list(dir)
	if err != nil {
		return 0, wrap(IOFailed, err, "list %s", dir)
	}
	keep := map[string]bool{metaName: true, "LOCK": true}
	for _, n := range m.Layers {
		keep[filepath.Base(layerPrefix(dir, n))+".data"] = true
		keep[filepath.Base(layerPrefix(dir, n))+".log"] = true
		next = max(next, n)
	}
	for _, name := range names {
		ours := strings.HasSuffix(name, ".data") || strings.HasSuffix(name, ".log") || strings.HasSuffix(name, ".new")
		if ours && !keep[name] {
			if err := fsys.remove(filepath.Join(dir, name)); err != nil {
				return 0, wrap(IOFailed, err, "remove what a crash left")
			}
		}
	}
	return next + 1, nil
}
