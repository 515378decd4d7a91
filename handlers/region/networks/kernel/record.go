package kernel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// record is what is written down of an environment before the host is changed, and forgotten after the last of it is gone:
// whatever a killed process left has a record.
type record struct {
	Network networks.Network `json:"network"`
	Link    string           `json:"link,omitempty"` // the edge's address between itself and the host
}

// records are files, one for each environment.
type records struct{ dir string }

func (r records) path(id string) string { return filepath.Join(r.dir, id+".json") }

// all gives what is written down. What a process was killed in the middle of
// writing is nothing: it had done nothing of it yet.
func (r records) all() (map[string]record, error) {
	halves, err := filepath.Glob(filepath.Join(r.dir, "*.json"+next))
	if err != nil {
		return nil, err
	}
	for _, p := range halves {
		if err := os.Remove(p); err != nil {
			return nil, err
		}
	}
	paths, err := filepath.Glob(filepath.Join(r.dir, "*.json"))
	if err != nil {
		return nil, err
	}
	out := map[string]record{}
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		var one record
		if err := json.Unmarshal(data, &one); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		out[strings.TrimSuffix(filepath.Base(p), ".json")] = one
	}
	return out, nil
}

func (r records) write(id string, one record) error {
	data, err := json.Marshal(one)
	if err != nil {
		return err
	}
	return replace(r.path(id), data)
}

func (r records) forget(id string) error {
	for _, path := range []string{r.path(id) + next, r.path(id)} { // the first is of a process that was killed while it wrote
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return syncDir(r.dir)
}

// readEpoch gives the highest epoch seen; 0: none yet.
func readEpoch(path string) (int, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("%s holds no epoch: %w", path, err)
	}
	return n, nil
}

// next ends the name of a file that is not yet written.
const next = ".next"

// replace writes a file, which after a cut of the power is the old one or the new one.
func replace(path string, data []byte) error {
	f, err := os.OpenFile(path+next, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+next, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
