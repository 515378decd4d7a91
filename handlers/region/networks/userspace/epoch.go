package userspace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// readEpoch gives the highest epoch seen; 0: none yet.
func readEpoch(file string) (int, error) {
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("%s holds no epoch: %w", file, err)
	}
	return n, nil
}

// writeEpoch replaces it; when it has returned, a cut of the power does not bring the older one back.
func writeEpoch(file string, epoch int) error {
	next := file + ".next"
	f, err := os.Create(next)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, epoch)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(next, file); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// clone copies a network, so that neither side sees what the other changes.
func clone(n networks.Network) networks.Network {
	segments := make([]networks.Segment, len(n.Segments))
	for i, s := range n.Segments {
		s.Ports = slices.Clone(s.Ports)
		segments[i] = s
	}
	n.Segments = segments
	publics := make([]networks.Public, len(n.Edge.Publics))
	for i, p := range n.Edge.Publics {
		p.Open = slices.Clone(p.Open)
		publics[i] = p
	}
	n.Edge.Publics = publics
	rules := make([]networks.Rule, len(n.Edge.Rules))
	for i, r := range n.Edge.Rules {
		r.From, r.To, r.Ports = slices.Clone(r.From), slices.Clone(r.To), slices.Clone(r.Ports)
		rules[i] = r
	}
	n.Edge.Rules = rules
	return n
}
