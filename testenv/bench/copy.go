package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/trust"
	"github.com/tombolo-vdc/tombolo/testenv/images"
	"github.com/tombolo-vdc/tombolo/testenv/process"
	"github.com/tombolo-vdc/tombolo/testenv/report"
)

const mib = 1 << 20

// copying is what the rows about copies share: two versions of an image, saved by every tool before it is copied.
type copying struct {
	*bench
	dir     string
	v1, v2  string // raw images
	digests map[string]string
	tools   []tool
}

// tool is a way to bring a version to the other side. Each call of fresh gives the receiver the state it begins with:
// nothing for v1, and v1 in the tool's own form for v2.
type tool struct {
	name string
	only string // "v2": of no use for v1
	// sender starts what the receiver talks to.
	sender func(l *link) (*process.Process, string, error)
	// receive is the command of the receiver for a version; dir is its folder.
	receive func(l *link, address, version, dir string) []string
	fresh   func(ctx context.Context, version, dir string) error
	// result is the file that must equal the version's image, where the tool leaves one.
	result func(dir string) string
	ours   bool
}

// copied is one measurement.
type copied struct {
	seconds          []float64
	wire, socket     int64
	receiver, sender int64 // peak memory
}

// measured is the median of the times and the rest of the last run.
type outcome struct {
	tool, version, link string
	seconds             float64
	copied
}

// copyRows measures copies and saves.
func (b *bench) copyRows(ctx context.Context) error {
	c := &copying{bench: b, dir: filepath.Join(b.dir, "copy"), digests: map[string]string{}}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(c.dir)
	if err := c.makeImages(ctx); err != nil {
		return err
	}
	if err := c.saves(ctx); err != nil {
		return err
	}
	c.tools = c.allTools()
	var all []outcome
	for _, open := range []func(context.Context) (*link, error){openLoopback, openShaped} {
		if os.Getuid() != 0 {
			b.goals.NotMeasured("copies", errors.New("network namespaces need root"))
			return nil
		}
		got, err := c.overLink(ctx, open)
		if err != nil {
			return err
		}
		all = append(all, got...)
	}
	c.tabulate(all)
	return c.whole(ctx)
}

func (c *copying) makeImages(ctx context.Context) error {
	c.v1, c.v2 = filepath.Join(c.dir, "v1.raw"), filepath.Join(c.dir, "v2.raw")
	spec := images.Spec{Label: "bench", MinBytes: c.imageBytes, MaxBytes: c.imageBytes}
	if trees := images.Sources(ctx); len(trees) > 0 {
		spec.Trees, spec.More = trees[:1], trees[1:]
	}
	spec.FreeBytes = max(64*mib, 2<<30-c.imageBytes-c.imageBytes/12)
	c.say("building an image with %d MiB of files", c.imageBytes/mib)
	r, err := images.Build(ctx, spec, c.v1)
	if err != nil {
		return err
	}
	// Whole directories change, as releases change packages.
	edited := r.Files / 6
	if _, err := images.Evolve(ctx, c.v1, c.v2, images.Change{Label: "v2", Edit: edited, Delete: edited / 8, Add: edited / 4}); err != nil {
		return err
	}
	d, err := images.Compare(ctx, c.v1, c.v2, 4096)
	if err != nil {
		return err
	}
	c.imageNote = fmt.Sprintf("The image: ext4, %d MiB with %d MiB in %d files; version 2 edits %d files and deletes and adds others: %d MiB in blocks of 4 KiB are different.",
		r.Size/mib, r.Bytes/mib, r.Files, edited, d.Changed*4096/mib)
	c.say("%s", c.imageNote)
	return nil
}

// saves measures taking both images in, and leaves the senders' stores.
func (c *copying) saves(ctx context.Context) error {
	keys := filepath.Join(c.dir, "keys")
	if err := os.MkdirAll(keys, 0o700); err != nil {
		return err
	}
	authority, err := trust.OpenAuthority(keys)
	if err != nil {
		return err
	}
	for _, name := range []string{sourceRegion, targetRegion} {
		if _, err := authority.Region(keys, sourceOrTarget(name)); err != nil {
			return err
		}
	}
	t := &report.Table{Name: "save", Head: []string{"tool", "version", "seconds", "MiB stored", "peak MiB"}}
	ourTimes, peerTimes := map[string]float64{}, map[string]float64{}
	peer := c.chunker
	for _, version := range []string{"v1", "v2"} {
		var seconds, peerSeconds []float64
		var peak, peerPeak int64
		for i := range c.repeats {
			last := i == c.repeats-1
			// Each repeat begins with a store that has what came before this version, and no more.
			took, p, err := c.saveOurs(ctx, version, last)
			if err != nil {
				return err
			}
			seconds, peak = append(seconds, took), max(peak, p)
			if peer == nil || !last { // one run of the peer takes as long as many of ours
				continue
			}
			if took, p, err = c.savePeer(ctx, version); err != nil {
				return err
			}
			peerSeconds, peerPeak = append(peerSeconds, took), max(peerPeak, p)
		}
		ourTimes[version] = median(seconds)
		t.Add("tombolo", version, median(seconds), folderBytes(filepath.Join(c.dir, "ours"))/mib, peak/mib)
		c.peaks = append(c.peaks, peak)
		if peer != nil {
			peerTimes[version] = median(peerSeconds)
			t.Add(peer.name+" make", version, median(peerSeconds), folderBytes(filepath.Join(c.dir, "peer"))/mib, peerPeak/mib)
		}
	}
	t.Note("From the raw image in the system's cache until what was stored is on the disk (fsync; for the peer, `sync -f` on its store). Ours is the median of %d, the peer ran once. %s", c.repeats, c.peerNote)
	c.tables = append(c.tables, t)
	if peer == nil {
		c.goals.NotMeasured("saving against desync or casync", errors.New("neither is installed"))
		return nil
	}
	c.goals.AtMost("saving v1 / "+peer.name+" make", 1, ourTimes["v1"]/peerTimes["v1"], "")
	c.goals.AtMost("saving v2 / "+peer.name+" make", 1, ourTimes["v2"]/peerTimes["v2"], "")
	return nil
}

func (c *copying) saveOurs(ctx context.Context, version string, keep bool) (float64, int64, error) {
	store := filepath.Join(c.dir, "ours")
	scratch := filepath.Join(c.dir, "scratch-store")
	if !keep {
		defer os.RemoveAll(scratch)
		if err := copyFolder(ctx, store, scratch); err != nil {
			return 0, 0, err
		}
		store = scratch
	}
	if err := settle(ctx, c.dir); err != nil {
		return 0, 0, err
	}
	var t told
	took, p, err := c.part(ctx, "", partSave, part{Store: store, Image: c.image(version), Name: version}, &t)
	if err != nil {
		return 0, 0, err
	}
	c.digests[version] = t.Digest
	return took.Seconds(), p.Peak(), nil
}

func (c *copying) savePeer(ctx context.Context, version string) (float64, int64, error) {
	store := filepath.Join(c.dir, "peer")
	if err := errors.Join(os.MkdirAll(store, 0o700), settle(ctx, c.dir)); err != nil {
		return 0, 0, err
	}
	began := time.Now()
	_, p, err := process.Run(ctx, process.Command{Args: c.chunker.save(store, filepath.Join(c.dir, version+".caibx"), c.image(version)), Env: []string{"HOME=" + c.dir}})
	if err != nil {
		return 0, 0, err
	}
	if err := run(ctx, "sync", "-f", store); err != nil {
		return 0, 0, err
	}
	return time.Since(began).Seconds(), p.Peak(), nil
}

func (c *copying) image(version string) string {
	if version == "v1" {
		return c.v1
	}
	return c.v2
}

// overLink measures every tool over one link, in rounds, so that what else the machine does falls on all.
func (c *copying) overLink(ctx context.Context, open func(context.Context) (*link, error)) (out []outcome, err error) {
	l, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	for _, version := range []string{"v1", "v2"} {
		got := map[string]*copied{}
		for range c.repeats {
			for _, t := range c.tools {
				if t.only != "" && t.only != version {
					continue
				}
				if got[t.name] == nil {
					got[t.name] = &copied{}
				}
				if err := c.once(ctx, l, t, version, got[t.name]); err != nil {
					return nil, fmt.Errorf("%s of %s over %s: %w", t.name, version, l.name, err)
				}
			}
		}
		for _, t := range c.tools {
			if m := got[t.name]; m != nil {
				out = append(out, outcome{tool: t.name, version: version, link: l.name, seconds: median(m.seconds), copied: *m})
				c.say("%-28s %s %-9s %6.2f s %5d MiB", t.name, version, l.name, median(m.seconds), m.wire/mib)
			}
		}
	}
	return out, nil
}

// once copies one version with one tool; the time ends when the data is on the disk.
func (c *copying) once(ctx context.Context, l *link, t tool, version string, m *copied) (err error) {
	dir := filepath.Join(c.dir, "receiver")
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := t.fresh(ctx, version, dir); err != nil {
		return err
	}
	sender, address, err := t.sender(l)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, sender.End(10*time.Second))
		m.sender = max(m.sender, sender.Peak())
	}()
	if err := settle(ctx, c.dir); err != nil {
		return err
	}
	before, err := l.bytes(ctx)
	if err != nil {
		return err
	}
	var answer told
	began := time.Now()
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer out.Close()
	_, p, err := process.Run(ctx, process.Command{Args: t.receive(l, address, version, dir), Netns: l.receiver, Stdout: in, Env: []string{"HOME=" + c.dir}})
	in.Close()
	if err != nil {
		return err
	}
	if t.result != nil {
		if err := syncFile(t.result(dir)); err != nil {
			return err
		}
	}
	m.seconds = append(m.seconds, time.Since(began).Seconds())
	after, err := l.bytes(ctx)
	if err != nil {
		return err
	}
	m.wire, m.receiver = after-before, max(m.receiver, p.Peak())
	if t.ours {
		if err := json.NewDecoder(bufio.NewReader(out)).Decode(&answer); err != nil {
			return err
		}
		m.socket = answer.Socket
	}
	if t.result != nil && len(m.seconds) == 1 {
		return run(ctx, "cmp", t.result(dir), c.image(version))
	}
	return nil
}

// syncFile makes a file durable, as the peers do not.
func syncFile(path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = closed(err, f) }()
	return f.Sync()
}

// settle writes out what is dirty, so that a measurement does not pay for what came before.
func settle(ctx context.Context, dir string) error { return run(ctx, "sync", "-f", dir) }

// copyFolder copies with holes; where there is nothing to copy it makes an empty folder.
func copyFolder(ctx context.Context, from, to string) error {
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if _, err := os.Stat(from); errors.Is(err, os.ErrNotExist) {
		return os.MkdirAll(to, 0o700)
	}
	return run(ctx, "cp", "-r", "--sparse=always", from, to)
}

// folderBytes is what a folder takes on the disk.
func folderBytes(dir string) (sum int64) {
	_ = filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if info, err := e.Info(); err == nil {
			if s, ok := info.Sys().(*syscall.Stat_t); ok {
				sum += s.Blocks * 512
			}
		}
		return nil
	})
	return sum
}

func median(x []float64) float64 {
	x = slices.Sorted(slices.Values(x))
	if len(x) == 0 {
		return 0
	}
	return (x[(len(x)-1)/2] + x[len(x)/2]) / 2
}

// tabulate makes the table of copies and holds it against the goals.
func (c *copying) tabulate(all []outcome) {
	t := &report.Table{Name: "copy", Head: []string{"link", "version", "tool", "seconds", "MiB on the wire", "MiB at our socket", "receiver peak MiB", "sender peak MiB"}}
	slices.SortStableFunc(all, func(a, b outcome) int {
		return cmp.Or(cmp.Compare(b.link, a.link), cmp.Compare(a.version, b.version))
	})
	for _, o := range all {
		socket := ""
		if o.socket > 0 {
			socket = report.Number(float64(o.socket) / mib)
		}
		t.Add(o.link, o.version, o.tool, o.seconds, float64(o.wire)/mib, socket, o.receiver/mib, o.sender/mib)
		if strings.HasPrefix(o.tool, "tombolo") {
			c.peaks = append(c.peaks, o.receiver, o.sender)
		}
	}
	t.Note("%s", c.imageNote)
	t.Note("“Stored” ends, as the peers do, when every chunk was checked against its hash on arrival and is on the disk, and is what the goals are about; “read back” is what an agent does besides before it says *verified*: it reads all of it again.")
	t.Note("Median seconds of %d runs, in rounds over all tools, until the data is on the disk (fsync). The wire is counted by the interface, in both directions, headers and all, alike for every tool. What is read is in the system's cache. rsync runs with `--inplace` (it overwrites version 1, which Tombolo keeps) without encryption, as does the peer's chunk server; Tombolo uses mutually authenticated TLS.", c.repeats)
	c.tables = append(c.tables, t)
	for _, link := range []string{"loopback", "1 Gbit/s"} {
		for _, version := range []string{"v1", "v2"} {
			var ours outcome
			for _, o := range all {
				if o.link == link && o.version == version && o.tool == oursStored {
					ours = o
				}
			}
			var better []string
			for _, o := range all {
				if o.link == link && o.version == version && !strings.HasPrefix(o.tool, "tombolo") && o.seconds < ours.seconds && o.wire < ours.wire {
					better = append(better, o.tool)
				}
			}
			c.goals.None("peers better on both time and bytes: "+version+" over "+link, better)
		}
	}
	c.goals.AtMost("peak memory of an agent while it saves, sends or receives", 256, float64(slices.Max(c.peaks))/mib, " MiB")
}
