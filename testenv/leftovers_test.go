package testenv

import (
	"io/fs"
	"path/filepath"
	"testing"
)

// stored is how many bytes of chunks and of disk indexes a region has on its disk.
func (w *World) stored(region string) (bytes int64) {
	w.t.Helper()
	for _, folder := range []string{"packs", "indexes", "roots", "holds"} {
		err := filepath.WalkDir(filepath.Join(w.Dir, region, "chunks", folder), func(_ string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			bytes += info.Size()
			return err
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return bytes
}

// TestNothingIsLeft: capability 9: a region that has held two versions, one right
// after the other, and is to hold the template no longer has not one byte of it
// when the operation has ended; and no work is done a second time because the
// agent's own projections had not heard of its end.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	w := New(t, realProgram(t), Options{Regions: []string{"beijing", "sydney"}})
	w.Pools(8)
	env := w.Create("shop", "beijing", Disk(1, 4*mib))
	number, operation := w.Save(env, "Shop", "beijing", "sydney")
	w.Done(operation)
	w.Region("beijing").WriteDisk(env, "web/root", Disk(2, mib), 0)
	w.Done(w.Replace(number, env))
	w.Done(w.must("POST", "/v1/templates/"+number+"/regions", map[string]any{"remove": []string{"sydney"}}).Operation)
	if got := w.stored("sydney"); got != 0 {
		t.Errorf("%d bytes of the template are still in sydney", got)
	}
	if p := w.PoolOf("sydney"); p.Free != p.Size {
		t.Errorf("sydney's pool after the removal: %+v", p)
	}
	w.Rest()
	tries := map[string]int{}
	for _, f := range w.Facts(1, "work.started") {
		if tries[f.Subject]++; tries[f.Subject] > 1 {
			t.Errorf("%s was begun %d times", f.Subject, tries[f.Subject])
		}
	}
	w.Clean()
}
