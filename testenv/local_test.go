package testenv

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// made is what template instantiate prints.
type made struct {
	Environment string
	Bytes       int64 `json:"bytes_between_regions"`
	Duration    int64 `json:"duration_ms"`
}

// TestLocalInstantiationIsFast: capability 17: an environment of a template of
// 2 GiB is made where it is stored: no byte comes from another region, as counted
// outside; it is at least 3 times as fast as over a link of 100 Mbit/s; what is
// stored is not stored again.
func TestLocalInstantiationIsFast(t *testing.T) {
	t.Parallel()
	const (
		size   = 2 << 30 // as a machine sees the disk
		data   = 96 * mib
		mbit   = 1000 * 1000 / 8
		spread = 8 // places on the disk that hold the data
	)
	tombolo := realProgram(t)
	w := New(t, tombolo, Options{Regions: []string{"beijing", "sydney"}, Flags: map[string][]string{"sydney": {"--link-bytes-per-second", strconv.Itoa(100 * mbit)}}})
	image, err := os.Create(filepath.Join(w.Dir, "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(spread) {
		if _, err := image.WriteAt(Disk(uint64(31+i), data/spread), i*size/spread); err != nil {
			t.Fatal(err)
		}
	}
	if err := image.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := image.Close(); err != nil {
		t.Fatal(err)
	}
	w.File("env.yaml", []byte("name: Large\nmachines:\n  - {name: web, disks: [{name: root, file: disk.img}]}\n"))
	w.run(tombolo.Path, nil, "env", "create", "-f", "env.yaml", "--region", "beijing")
	w.run(tombolo.Path, nil, "template", "create", "--from-env", "large", "--name", "Large", "--number", "73291467")

	beijing, sydney := w.Region("beijing"), w.Region("sydney")
	before, passed := onDisk(t, beijing.Dir), beijing.Transfer.Down()+sydney.Transfer.Down()
	var slowest int64
	for _, name := range []string{"One", "Two"} {
		var local made
		w.run(tombolo.Path, &local, "template", "instantiate", "73291467", "--region", "beijing", "--name", name)
		if local.Bytes != 0 {
			t.Errorf("%s: %d bytes between regions", name, local.Bytes)
		}
		slowest = max(slowest, local.Duration)
		if got := beijing.ReadDisk(local.Environment, "web/root", 4096); string(got) != string(Disk(31, data/spread)[:4096]) {
			t.Errorf("%s has other bytes than were saved", name)
		}
	}
	if now := beijing.Transfer.Down() + sydney.Transfer.Down(); now != passed {
		t.Errorf("%d bytes came over the links", now-passed)
	}
	after := onDisk(t, beijing.Dir)
	if grown := after - before; grown > data/20 {
		t.Errorf("two more environments of %d bytes of data took %d bytes of the region's disk", data, grown)
	}
	if before < data || before > data*3/2 {
		t.Errorf("the region's disk has %d bytes for %d bytes of data", before, data)
	}

	if r := w.CLI(tombolo.Path, "template", "instantiate", "73291467", "--region", "sydney", "-q"); r.Exit != 6 {
		t.Errorf("copied without being asked: exit %d: %s", r.Exit, r.Err)
	}
	var remote made
	w.run(tombolo.Path, &remote, "template", "instantiate", "73291467", "--region", "sydney", "--name", "Far", "--yes")
	if remote.Bytes < data {
		t.Errorf("the remote one took %d bytes over the link; it has %d", remote.Bytes, data)
	}
	if rate := float64(remote.Bytes) / float64(remote.Duration) * 1000; rate > 1.1*100*mbit {
		t.Errorf("the link brought %.0f bytes a second, its cap is %d", rate, 100*mbit)
	}
	if slowest*3 > remote.Duration {
		t.Errorf("where it is stored it took %d ms, over the link %d ms", slowest, remote.Duration)
	}
	t.Logf("where it is stored: %d ms, 0 bytes; over 100 Mbit/s: %d ms, %d bytes; the disk grew from %d by %d bytes", slowest, remote.Duration, remote.Bytes, before, after-before)
}

// onDisk is what a folder takes of the disk, without the read models, which hold
// what all regions did.
func onDisk(t *testing.T, dir string) (total int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path == filepath.Join(dir, "reads") {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			total += s.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return total
}
