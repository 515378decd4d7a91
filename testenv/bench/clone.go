package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/tombolo-vdc/tombolo/testenv/images"
	"github.com/tombolo-vdc/tombolo/testenv/report"
)

// cloneRows measures how long it takes until a clone of a stored disk answers.
func (b *bench) cloneRows(ctx context.Context) error {
	dir := filepath.Join(b.dir, "clone")
	defer os.RemoveAll(dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	image := filepath.Join(dir, "disk.raw")
	spec := images.Spec{Label: "clone", MinBytes: 600 * mib, MaxBytes: 600 * mib}
	if trees := images.Sources(ctx); len(trees) > 0 {
		spec.Trees, spec.More = trees[:1], trees[1:]
	}
	r, err := images.Build(ctx, spec, image)
	if err != nil {
		return err
	}
	// Exactly 1 GiB: the file system ends before, and a disk has room behind it.
	if r.Size > gib {
		return fmt.Errorf("the image has %d bytes", r.Size)
	}
	if err := os.Truncate(image, gib); err != nil {
		return err
	}
	t := &report.Table{Name: "clone", Head: []string{"disk", "MiB stored", "ms until read and written (median)", "ms (worst)", "peak MiB"}}
	var took []float64
	for _, n := range []int{1, 16} {
		store := filepath.Join(dir, fmt.Sprintf("store-%d", n))
		var saved, opened told
		b.say("saving a disk of %d GiB", n)
		if _, _, err := b.part(ctx, "", partSave, part{Store: store, Image: image, Name: "disk", Copies: n}, &saved); err != nil {
			return err
		}
		clones := filepath.Join(dir, fmt.Sprintf("clones-%d", n))
		if err := os.MkdirAll(clones, 0o700); err != nil {
			return err
		}
		_, p, err := b.part(ctx, "", partClone, part{Store: store, Digest: saved.Digest, Name: fmt.Sprint(saved.Size), Dir: clones, Times: 15}, &opened)
		if err != nil {
			return err
		}
		worst := 0.0
		for _, s := range opened.Seconds {
			worst = max(worst, s)
		}
		took = append(took, median(opened.Seconds))
		t.Add(fmt.Sprintf("%d GiB", n), saved.Stored/mib, median(opened.Seconds)*1000, worst*1000, p.Peak()/mib)
		if err := os.RemoveAll(store); err != nil {
			return err
		}
	}
	t.Note("From the wish for a clone, in an agent that runs and so has the index of the instance in memory, until a random 4 KiB have been read and another 4 KiB written and flushed through NBD on a unix socket; 15 times, the packs out of the system's cache each time. The larger disk holds the smaller one's content 16 times, no two chunks alike.")
	b.tables = append(b.tables, t)
	b.goals.AtMost("clone of 16 GiB / clone of 1 GiB", 1.5, took[1]/took[0], "")
	return nil
}
