package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// fsck fails the test unless e2fsck finds the image in order; the tool is the judge that this package does not share
// any code with.
func fsck(t *testing.T, image string) {
	t.Helper()
	if out, err := exec.Command("e2fsck", "-fn", image).CombinedOutput(); err != nil {
		t.Fatalf("e2fsck -fn %s: %v\n%s", image, err, out)
	}
}

func write(t *testing.T, p string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func pattern(seed string, size int) []byte {
	out := make([]byte, 0, size+sha256.Size)
	for sum := sha256.Sum256([]byte(seed)); len(out) < size; sum = sha256.Sum256(sum[:]) {
		out = append(out, sum[:]...)
	}
	return out[:size]
}

func build(t *testing.T, spec Spec) (string, Report) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "disk.raw")
	report, err := Build(context.Background(), spec, image)
	if err != nil {
		t.Fatal(err)
	}
	return image, report
}

// content is what Walk sees: the kind, the permissions, and the target or the digest of the data.
func content(t *testing.T, image string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := Walk(context.Background(), image, func(e Entry, r io.Reader) error {
		h := sha256.New()
		n, err := io.Copy(h, r)
		if e.Mode.IsRegular() && n != e.Size {
			return fmt.Errorf("%s: %d of %d bytes", e.Path, n, e.Size)
		}
		out[e.Path] = fmt.Sprintf("%v %s %x", e.Mode, e.Target, h.Sum(nil))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// onHost is the same for a directory of this machine.
func onHost(t *testing.T, root, at string, skip func(string) bool) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root || skip != nil && skip(p) {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		mode, target, h := info.Mode()&(fs.ModePerm|fs.ModeType), "", sha256.New()
		switch {
		case mode.IsRegular():
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			h.Write(data)
		case mode&fs.ModeSymlink != 0:
			if target, err = os.Readlink(p); err != nil {
				return err
			}
		}
		rel, err := filepath.Rel(root, p)
		out[path.Join(at, filepath.ToSlash(rel))] = fmt.Sprintf("%v %s %x", mode, target, h.Sum(nil))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func same(t *testing.T, got, want map[string]string) {
	t.Helper()
	for p, w := range want {
		if got[p] != w {
			t.Errorf("%q: got %q, want %q", p, got[p], w)
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%q is in the image and not in the source", p)
		}
	}
}

func oddTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, size := range []int{0, 1, 4095, 4096, 4097, 65536, 1<<20 + 7} {
		write(t, filepath.Join(dir, "sizes", fmt.Sprint(size)), pattern(fmt.Sprint(size), size))
	}
	write(t, filepath.Join(dir, "hole"), append(make([]byte, 3*blockSize), "after a hole"...))
	write(t, filepath.Join(dir, strings.Repeat("n", 255)), []byte("the longest name"))
	write(t, filepath.Join(dir, "not \xff utf-8\n"), []byte("an odd name"))
	for i := range 600 {
		write(t, filepath.Join(dir, "many", fmt.Sprintf("%04d-with-a-name-of-some-length", i)), pattern(fmt.Sprint(i), i))
	}
	write(t, filepath.Join(dir, strings.Repeat("deep/", 60), "leaf"), []byte("leaf"))
	links := map[string]string{"short": "sizes/1", "edge59": strings.Repeat("a", 59), "edge60": strings.Repeat("b", 60),
		"long": strings.Repeat("c/", 1000), "outside": "/etc/passwd"}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "hole"), 0o750); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestBuildKeepsEverything(t *testing.T) {
	dir := oddTree(t)
	image, report := build(t, Spec{Label: "odd", Trees: []Tree{{Source: dir}}})
	fsck(t, image)
	want := onHost(t, dir, "", nil)
	want["lost+found"] = fmt.Sprintf("%v  %x", fs.ModeDir|0o700, sha256.Sum256(nil))
	same(t, content(t, image), want)
	if got := report.Files + report.Symlinks + report.Dirs - 1; got != len(want) {
		t.Errorf("the report counts %d entries, %d were expected", got, len(want))
	}

	// debugfs reads the image with none of our code.
	back := t.TempDir()
	if out, err := exec.Command("debugfs", "-R", "rdump / "+back, image).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
	same(t, onHost(t, back, "", nil), want)
}

func TestBuildSkipsWhatItCannotHold(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	write(t, filepath.Join(dir, "kept"), []byte("first"))
	write(t, filepath.Join(other, "kept"), []byte("second"))
	write(t, filepath.Join(dir, "file-or-dir"), []byte("file"))
	write(t, filepath.Join(other, "file-or-dir", "inside"), []byte("lost"))
	write(t, filepath.Join(dir, "large"), make([]byte, 1001))
	write(t, filepath.Join(dir, "secret"), []byte("secret"))
	if err := os.Chmod(filepath.Join(dir, "secret"), 0); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	image, report := build(t, Spec{Label: "odd", Trees: []Tree{{Source: dir}, {Source: other}}, MaxFileBytes: 1000})
	fsck(t, image)
	want := Skipped{Special: 1, TooLarge: 1, Conflict: 2, Unreadable: 1}
	if os.Geteuid() == 0 {
		want.Unreadable = 0 // nothing is secret from root
	}
	if report.Skipped != want {
		t.Errorf("skipped %+v, want %+v", report.Skipped, want)
	}
	got := content(t, image)
	if sum := fmt.Sprintf("%x", sha256.Sum256([]byte("first"))); !strings.Contains(got["kept"], sum) {
		t.Errorf("the first tree's file must stay, got %q", got["kept"])
	}
}

// Files and inodes that cross from one block group to the next.
func TestBuildAcrossGroups(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		p := filepath.Join(dir, fmt.Sprintf("large%d", i))
		write(t, p, pattern(p, 9000))
		f, err := os.OpenFile(p, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteAt(pattern(p, 9000), maxFileBytes-9000)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "many"), 0o755); err != nil {
		t.Fatal(err)
	}
	for i := range inodesPerGroup {
		f, err := os.Create(filepath.Join(dir, "many", fmt.Sprint(i)))
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	image, report := build(t, Spec{Label: "large", Trees: []Tree{{Source: dir}}})
	fsck(t, image)
	want := onHost(t, dir, "", nil)
	want["lost+found"] = fmt.Sprintf("%v  %x", fs.ModeDir|0o700, sha256.Sum256(nil))
	same(t, content(t, image), want)
	info, err := os.Stat(image)
	if err != nil {
		t.Fatal(err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || stat.Blocks*512 > 32<<20 || report.Size < 3*maxFileBytes {
		t.Errorf("%d bytes long, %d stored: blocks of zeros should cost nothing", report.Size, stat.Blocks*512)
	}
}

func TestBuildFromATreeThatChanges(t *testing.T) {
	dir := t.TempDir()
	name := func(i int) string { return filepath.Join(dir, fmt.Sprint(i%7), fmt.Sprint(i%31)) }
	for i := range 7 * 31 {
		write(t, name(i), pattern("v0", 20000))
	}
	stop := make(chan struct{})
	var churn sync.WaitGroup
	churn.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			// Errors are part of the churn: a name is a file, a pipe, a directory or gone by turns.
			p := name(i * 13)
			switch i % 5 {
			case 0:
				_ = os.Truncate(p, int64(i%9000))
			case 1:
				_ = os.WriteFile(p, pattern(p, i%50000), 0o644)
			case 2:
				_ = os.RemoveAll(p)
			case 3:
				_ = syscall.Mkfifo(p, 0o644)
			case 4:
				_ = os.RemoveAll(p)
				_ = os.MkdirAll(filepath.Join(p, "sub"), 0o755)
			}
		}
	})
	defer churn.Wait()
	defer close(stop)
	for range 8 {
		image, _ := build(t, Spec{Label: "churn", Trees: []Tree{{Source: dir}}})
		fsck(t, image)
		content(t, image)
	}
}

func TestSameInputSameBytes(t *testing.T) {
	dir := oddTree(t)
	spec := Spec{Label: "twice", Trees: []Tree{{Source: dir, At: "srv/data"}}}
	change := Change{Label: "r2", Edit: 300, Delete: 40, Add: 100}
	var first, second [][]byte
	for _, out := range []*[][]byte{&first, &second} {
		image, _ := build(t, spec)
		if _, err := Evolve(context.Background(), image, image+".2", change); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{image, image + ".2"} {
			data, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.Sum256(data)
			*out = append(*out, sum[:])
		}
	}
	if !bytes.Equal(first[0], second[0]) || !bytes.Equal(first[1], second[1]) {
		t.Error("two runs gave different bytes")
	}
}

func TestRefusals(t *testing.T) {
	ctx := context.Background()
	dir, out := t.TempDir(), t.TempDir()
	write(t, filepath.Join(dir, "a"), []byte("a"))
	image, _ := build(t, Spec{Label: "ok", Trees: []Tree{{Source: dir}}})
	target := filepath.Join(out, "x")
	broken := filepath.Join(t.TempDir(), "broken")
	write(t, broken, make([]byte, 1<<20))
	make1 := func(s Spec) error { _, err := Build(ctx, s, target); return err }
	evolve := func(from string, c Change) error { _, err := Evolve(ctx, from, target, c); return err }
	trees := []Tree{{Source: dir}}
	for name, c := range map[string]struct {
		err  error
		code Code
	}{
		"no label":        {make1(Spec{Trees: trees}), CodeSpec},
		"long label":      {make1(Spec{Label: strings.Repeat("a", 17), Trees: trees}), CodeSpec},
		"negative":        {make1(Spec{Label: "a", Trees: trees, FreeBytes: -1}), CodeSpec},
		"min above max":   {make1(Spec{Label: "a", Trees: trees, MinBytes: 2, MaxBytes: 1}), CodeSpec},
		"outside":         {make1(Spec{Label: "a", Trees: []Tree{{Source: dir, At: "../b"}}}), CodeSpec},
		"below a file":    {make1(Spec{Label: "a", Trees: []Tree{{Source: dir}, {Source: dir, At: "a"}}}), CodeSpec},
		"no source":       {make1(Spec{Label: "a", Trees: []Tree{{Source: filepath.Join(dir, "none")}}}), CodeSource},
		"too small":       {make1(Spec{Label: "a", Trees: trees, MinBytes: 2}), CodeTooSmall},
		"too large":       {make1(Spec{Label: "a", Trees: trees, FreeBytes: 1 << 40}), CodeFull},
		"foreign image":   {evolve(broken, Change{Label: "a"}), CodeForeign},
		"too few files":   {evolve(image, Change{Label: "b", Edit: 2}), CodeTooFew},
		"too many added":  {evolve(image, Change{Label: "a", Edit: 1, Add: 2}), CodeSpec},
		"label is a name": {evolve(image, Change{Label: "lost+found"}), CodeSpec},
		"label in use":    {evolve(image, Change{Label: "a", Edit: 1, Add: 1}), CodeSpec},
	} {
		var e *Error
		if !errors.As(c.err, &e) || e.Code != c.code {
			t.Errorf("%s: got %v, want %s", name, c.err, c.code)
		}
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := Build(cancelled, Spec{Label: "a", Trees: trees}, target); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled context gave %v", err)
	}
	if left, err := os.ReadDir(out); err != nil || len(left) > 0 {
		t.Errorf("refusals left %v behind (%v)", left, err)
	}
}

// The disks of the demo: Go's source tree and what the machine has, 256 MiB on three machines, and their version 2.
func TestMachinesAndTheirSecondVersion(t *testing.T) {
	ctx := context.Background()
	specs, err := Plan(Sources(ctx), 256<<20, "web", "app", "db")
	if err != nil {
		t.Fatal(err)
	}
	var total, touched int
	for _, spec := range specs {
		image, report := build(t, spec)
		fsck(t, image)
		total += int(report.Bytes)
		before := content(t, image)
		for _, o := range report.Origins[:len(spec.Trees)] {
			for p, want := range onHost(t, o.Source, o.At, nil) {
				if before[p] != want {
					t.Errorf("%s: got %q, want %q", p, before[p], want)
				}
			}
		}

		second := image + ".2"
		e, err := Evolve(ctx, image, second, Change{Label: "release-2", Edit: 800, Delete: 80, Add: 120})
		if err != nil {
			t.Fatal(err)
		}
		fsck(t, second)
		checkEvolution(t, e, before, content(t, second), second)
		touched += len(e.Edited) + len(e.Deleted) + len(e.Added)
		d, err := Compare(ctx, image, second, 64<<10)
		if err != nil {
			t.Fatal(err)
		}
		if share := d.ChangedShare(); share == 0 || share > 0.4 {
			t.Errorf("%s: %.0f %% of the blocks changed; most must stay", spec.Label, 100*share)
		}
		t.Logf("%s: %d files, %d MiB in %v (%.0f MB/s); version 2 in %v: %d of %d blocks of 64 KiB changed (%.1f %%)",
			spec.Label, report.Files, report.Bytes>>20, report.Elapsed, float64(report.Bytes)/1e6/report.Elapsed.Seconds(),
			e.Elapsed, d.Changed, d.Total-d.Zero, 100*d.ChangedShare())
	}
	if total < 256<<20 || touched < 2000 {
		t.Errorf("%d bytes and %d touched files are too few", total, touched)
	}
}

// checkEvolution compares what Evolve says with what the images hold.
func checkEvolution(t *testing.T, e Evolution, before, after map[string]string, image string) {
	t.Helper()
	if len(e.Edited) != 800 || len(e.Deleted) != 80 || len(e.Added) != 120 {
		t.Fatalf("edited %d, deleted %d, added %d", len(e.Edited), len(e.Deleted), len(e.Added))
	}
	for p, was := range before {
		_, edited := slices.BinarySearch(e.Edited, p)
		_, deleted := slices.BinarySearch(e.Deleted, p)
		switch is, there := after[p]; {
		case deleted == there:
			t.Errorf("%s: deleted %v, in version 2 %v", p, deleted, there)
		case there && edited == (is == was):
			t.Errorf("%s: edited %v, but %q became %q", p, edited, was, is)
		}
	}
	for p := range after {
		_, added := slices.BinarySearch(e.Added, p)
		if _, was := before[p]; !was && !added && p != "release-2" {
			t.Errorf("%s is new and not reported", p)
		}
	}
	records := 0
	err := Walk(context.Background(), image, func(entry Entry, r io.Reader) error {
		if path.Dir(entry.Path) != "release-2" {
			return nil
		}
		records++
		var rec record
		if err := json.NewDecoder(r).Decode(&rec); err != nil {
			return err
		}
		if !strings.HasSuffix(before[rec.Path], rec.Before) || rec.What == "edited" && !strings.HasSuffix(after[rec.Path], rec.After) {
			t.Errorf("record %+v does not tell the truth", rec)
		}
		return nil
	})
	if err != nil || records != 120 {
		t.Errorf("%d records were read (%v)", records, err)
	}
}

// A disk that evolves again and again stays in order, until it is full.
func TestEvolveRepeatedly(t *testing.T) {
	image, _ := build(t, Spec{Label: "aging", Trees: []Tree{{Source: oddTree(t)}}})
	for i := range 6 {
		next := fmt.Sprintf("%s.%d", image, i)
		if _, err := Evolve(context.Background(), image, next, Change{Label: fmt.Sprintf("r%d", i), Edit: 50, Delete: 30, Add: 80}); err != nil {
			t.Fatal(err)
		}
		fsck(t, next)
		image = next
	}
}
