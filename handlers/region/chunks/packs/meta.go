package packs

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// A root or hold is one line of JSON and one line with the digest of the first.

func (s *Store) metaPath(folder, key string) string {
	return s.path(folder, chunks.DigestOf([]byte(key)).Hex()+".json")
}

func (s *Store) writeMeta(folder, key string, v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	b := fmt.Appendf(nil, "%s\n%s\n", line, chunks.DigestOf(line))
	path := s.metaPath(folder, key)
	if err := replaceFile(s.fs, path, b); err != nil {
		return s.writeError(err, "write "+path)
	}
	if err := s.fs.syncDir(s.path(folder)); err != nil {
		return s.writeError(err, "make "+path+" durable")
	}
	delete(s.broken, path)
	return nil
}

// removeMeta says whether the file was there.
func (s *Store) removeMeta(folder, key string) (bool, error) {
	path := s.metaPath(folder, key)
	if err := s.fs.remove(path); errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, s.writeError(err, "remove "+path)
	}
	delete(s.broken, path)
	return true, s.writeError(s.fs.syncDir(s.path(folder)), "make the removal of "+path+" durable")
}

func readMeta(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	line, digest, _ := bytes.Cut(b, []byte("\n"))
	if string(digest) != string(chunks.DigestOf(line))+"\n" {
		return errors.New("the digest does not match")
	}
	return json.Unmarshal(line, v)
}

// openMeta reads roots and holds. One that cannot be read does not keep the store closed, but it is told by Roots or
// Holds, and nothing is collected until it is published or held again, or removed.
func (s *Store) openMeta() error {
	read := func(folder string, one func(path string) (key string, err error)) error {
		found, err := filepath.Glob(s.path(folder, "*.json"))
		if err != nil {
			return err
		}
		for _, path := range found {
			key, err := one(path)
			if err == nil && s.metaPath(folder, key) != path {
				err = fmt.Errorf("the file is of %q", key)
			}
			if err != nil {
				s.broken[path] = chunks.Wrap(chunks.StoreDamaged, err, "%s cannot be read; publish, hold or remove it again", path)
			}
		}
		return nil
	}
	return errors.Join(
		read("roots", func(path string) (string, error) {
			var r chunks.Root
			if err := readMeta(path, &r); err != nil {
				return "", err
			}
			s.roots[r.Name] = r
			return r.Name, nil
		}),
		read("holds", func(path string) (string, error) {
			var h chunks.Hold
			if err := readMeta(path, &h); err != nil {
				return "", err
			}
			s.holds[h.Owner] = h
			return h.Owner, nil
		}))
}

// brokenMeta wants metaMu.
func (s *Store) brokenMeta(folder string) error {
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(s.broken)) {
		if strings.HasPrefix(path, s.path(folder)) {
			errs = append(errs, s.broken[path])
		}
	}
	return errors.Join(errs...)
}

// Roots implements chunks.Reader. Error: store-damaged beside the roots that can be read.
func (s *Store) Roots(ctx context.Context) ([]chunks.Root, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	s.metaMu.Lock()
	defer s.metaMu.Unlock()
	out := slices.SortedFunc(maps.Values(s.roots), func(a, b chunks.Root) int { return cmp.Compare(a.Name, b.Name) })
	for i := range out {
		out[i].Indexes = slices.Clone(out[i].Indexes)
	}
	return out, s.brokenMeta("roots")
}

// Holds implements chunks.Reader. Error: store-damaged beside the holds that can be read.
func (s *Store) Holds(ctx context.Context) ([]chunks.Hold, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	s.metaMu.Lock()
	defer s.metaMu.Unlock()
	out := slices.SortedFunc(maps.Values(s.holds), func(a, b chunks.Hold) int { return cmp.Compare(a.Owner, b.Owner) })
	for i := range out {
		out[i].Indexes = slices.Clone(out[i].Indexes)
	}
	return out, s.brokenMeta("holds")
}

// Hold implements chunks.Writer.
func (s *Store) Hold(ctx context.Context, owner string, until time.Time) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	if owner == "" || until.IsZero() {
		return chunks.Errorf(chunks.HoldInvalid, "a hold wants an owner and an end")
	}
	s.metaMu.Lock()
	defer s.metaMu.Unlock()
	h := s.holds[owner]
	if h.Until.Equal(until) {
		return nil
	}
	h.Owner, h.Until = owner, until.UTC().Round(0)
	if err := s.writeMeta("holds", owner, h); err != nil {
		return err
	}
	s.holds[owner] = h
	return nil
}

// Release implements chunks.Writer.
func (s *Store) Release(ctx context.Context, owner string) (bool, error) {
	if err := s.begin(ctx); err != nil {
		return false, err
	}
	s.metaMu.Lock()
	defer s.metaMu.Unlock()
	existed, err := s.removeMeta("holds", owner)
	if existed {
		delete(s.holds, owner)
	}
	return existed, err
}

// Attach implements chunks.Session.
func (n *session) Attach(ctx context.Context, x *chunks.DiskIndex) (chunks.Digest, error) {
	s := n.store
	if err := s.begin(ctx); err != nil {
		return "", err
	}
	if err := s.sync(); err != nil {
		return "", err
	}
	s.metaMu.Lock()
	defer s.metaMu.Unlock()
	h, ok := s.holds[n.owner]
	if !ok {
		return "", chunks.Errorf(chunks.HoldUnknown, "no hold of %q any more", n.owner)
	}
	d, err := s.writeDiskIndex(ctx, x)
	if err != nil {
		return "", err
	}
	if !slices.Contains(h.Indexes, d) {
		h.Indexes = append(slices.Clone(h.Indexes), d)
		if err := s.writeMeta("holds", n.owner, h); err != nil {
			return "", err
		}
		s.holds[n.owner] = h
	}
	s.mark(x) // a running Collect has read the holds already
	return d, nil
}

func (s *Store) diskIndexPath(d chunks.Digest) string { return s.path("indexes", d.Hex()+".idx") }

// writeDiskIndex wants metaMu. It writes anew what is there but damaged.
func (s *Store) writeDiskIndex(ctx context.Context, x *chunks.DiskIndex) (chunks.Digest, error) {
	var b bytes.Buffer
	d, err := x.Encode(&b)
	if err != nil {
		return "", err
	}
	if _, err := s.Index(ctx, d); err == nil {
		return d, nil
	}
	if err := replaceFile(s.fs, s.diskIndexPath(d), b.Bytes()); err != nil {
		return "", s.writeError(err, "write disk index "+string(d))
	}
	return d, s.writeError(s.fs.syncDir(s.path("indexes")), "make disk index "+string(d)+" durable")
}

// Index implements chunks.Reader.
func (s *Store) Index(ctx context.Context, d chunks.Digest) (*chunks.DiskIndex, error) {
	if err := s.begin(ctx); err != nil {
		return nil, err
	}
	if _, err := chunks.ParseDigest(string(d)); err != nil {
		return nil, err
	}
	f, err := os.Open(s.diskIndexPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, chunks.Errorf(chunks.IndexMissing, "disk index %s is not in %s", d, s.dir)
	} else if err != nil {
		return nil, chunks.Wrap(chunks.StoreDamaged, err, "open disk index %s", d)
	}
	defer f.Close()
	x, got, err := chunks.DecodeIndex(f)
	if err != nil {
		return nil, chunks.Wrap(chunks.StoreDamaged, err, "read disk index %s", d)
	}
	if got != d {
		return nil, chunks.Errorf(chunks.StoreDamaged, "disk index %s holds %s", d, got)
	}
	return x, nil
}

// Publish implements chunks.Writer.
func (s *Store) Publish(ctx context.Context, r chunks.Root) error {
	if err := s.begin(ctx); err != nil {
		return err
	}
	if r.Name == "" || r.Owner == "" || len(r.Indexes) == 0 {
		return chunks.Errorf(chunks.RootInvalid, "a root wants a name, an owner and at least one disk")
	}
	r.Indexes = slices.Clone(r.Indexes)
	// From the look at the chunks until the root is there they are protected as those of a session.
	guard := s.beginSession(r.Owner)
	defer guard.Close()
	var disks []*chunks.DiskIndex
	for _, d := range r.Indexes {
		x, err := s.Index(ctx, d)
		if err != nil {
			return err
		}
		if missing := s.touch(x); len(missing) > 0 {
			return chunks.Errorf(chunks.ChunkMissing, "disk %s lacks %d chunks, the first is %s", d, len(missing), missing[0])
		}
		disks = append(disks, x)
	}
	if err := s.sync(); err != nil {
		return err
	}
	s.metaMu.Lock()
	defer s.metaMu.Unlock()
	if old, ok := s.roots[r.Name]; ok {
		if old.Owner == r.Owner && slices.Equal(old.Indexes, r.Indexes) {
			return nil
		}
		return chunks.Errorf(chunks.RootConflict, "%q is published by %q with other content or for another owner", r.Name, old.Owner)
	}
	// An index that nothing named may have been collected since it was read.
	for _, x := range disks {
		if _, err := s.writeDiskIndex(ctx, x); err != nil {
			return err
		}
	}
	if err := s.writeMeta("roots", r.Name, r); err != nil {
		return err
	}
	s.roots[r.Name] = r
	for _, x := range disks {
		s.mark(x) // a running Collect has read the roots already
	}
	return nil
}

// Unpublish implements chunks.Writer.
func (s *Store) Unpublish(ctx context.Context, name string) (bool, error) {
	if err := s.begin(ctx); err != nil {
		return false, err
	}
	s.metaMu.Lock()
	defer s.metaMu.Unlock()
	existed, err := s.removeMeta("roots", name)
	if existed {
		delete(s.roots, name)
	}
	return existed, err
}
