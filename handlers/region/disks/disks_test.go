package disks

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// run calls one of QEMU's tools, which made and judge the images.
func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

// rawDisk is a disk with text, noise, holes and written zeros, whose end is within any cluster.
func rawDisk(t testing.TB, size int64) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "disk.raw")
	f, err := os.Create(p)
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, size/16)
	random := rand.NewChaCha8([32]byte{1})
	if _, err := random.Read(noise); err != nil {
		t.Fatal(err)
	}
	text := bytes.Repeat([]byte("a line of text that compresses well\n"), int(size/16)/36)
	for at, data := range map[int64][]byte{0: text, size / 4: noise, size/2 + 777: noise[:5000], size * 3 / 4: make([]byte, size/16), size - 3000: text[:3000]} {
		if _, err := f.WriteAt(data, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return p
}

func open(p string, o Options) (*Image, *os.File, error) {
	f, err := os.Open(p)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, f, err
	}
	img, err := Open(f, info.Size(), o)
	return img, f, err
}

const testSize = 24<<20 + 3*sector

// variant is a way to make an image that must read like the raw disk.
type variant struct {
	name   string
	format Format
	args   []string // of qemu-img convert
}

func variants() []variant {
	return []variant{
		{"raw", Raw, []string{"-O", "raw"}},
		{"qcow2", QCOW2, []string{"-O", "qcow2"}},
		{"qcow2 of version 2", QCOW2, []string{"-O", "qcow2", "-o", "compat=0.10"}},
		{"qcow2 with small clusters", QCOW2, []string{"-O", "qcow2", "-o", "cluster_size=512"}},
		{"qcow2 with large clusters", QCOW2, []string{"-O", "qcow2", "-o", "cluster_size=2M"}},
		{"qcow2 with zlib", QCOW2, []string{"-O", "qcow2", "-c"}},
		{"qcow2 with zlib of version 2", QCOW2, []string{"-O", "qcow2", "-c", "-o", "compat=0.10,cluster_size=4k"}},
		{"qcow2 with zstd", QCOW2, []string{"-O", "qcow2", "-c", "-o", "compression_type=zstd"}},
		{"qcow2 with zstd, large clusters", QCOW2, []string{"-O", "qcow2", "-c", "-o", "compression_type=zstd,cluster_size=2M"}},
		{"qcow2 with allocated zeros", QCOW2, []string{"-O", "qcow2", "-S", "0"}},
		{"qcow2 with preallocated tables", QCOW2, []string{"-O", "qcow2", "-o", "preallocation=metadata"}},
		{"VMDK monolithicSparse", VMDK, []string{"-O", "vmdk", "-o", "subformat=monolithicSparse"}},
		{"VMDK with zeroed grains", VMDK, []string{"-O", "vmdk", "-o", "subformat=monolithicSparse,zeroed_grain=on"}},
		{"VMDK streamOptimized", VMDK, []string{"-O", "vmdk", "-o", "subformat=streamOptimized"}},
	}
}

func TestImagesReadLikeTheRawDisk(t *testing.T) {
	raw := rawDisk(t, testSize)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range variants() {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			p := filepath.Join(t.TempDir(), "image")
			run(t, "qemu-img", append(append([]string{"convert", "-f", "raw"}, v.args...), raw, p)...)
			img, f, err := open(p, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if img.Format() != v.format || img.Size() != testSize {
				t.Fatalf("%s of %d bytes", img.Format(), img.Size())
			}
			checkContent(t, img, want)
			checkExtents(t, img, want)
		})
	}
}

// checkContent reads everything at once, then pieces at odd places from several goroutines.
func checkContent(t *testing.T, img *Image, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := img.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("the content differs (%v)", err)
	}
	var readers sync.WaitGroup
	for seed := range uint64(4) {
		readers.Go(func() {
			random := rand.New(rand.NewPCG(seed, 0))
			for range 100 {
				at := random.IntN(len(want))
				p := make([]byte, 1+random.IntN(min(200_000, len(want)-at)))
				if _, err := img.ReadAt(p, int64(at)); err != nil || !bytes.Equal(p, want[at:at+len(p)]) {
					t.Errorf("%d bytes at %d differ (%v)", len(p), at, err)
				}
			}
		})
	}
	readers.Wait()
	if n, err := img.ReadAt(make([]byte, 100), int64(len(want))-40); n != 40 || !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if _, err := img.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("a negative offset was read")
	}
}

func checkExtents(t *testing.T, img *Image, want []byte) {
	t.Helper()
	var at, data int64
	for e, err := range img.Extents(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Length <= 0 || e.Offset < at || at > 0 && e.Offset == at || e.Offset+e.Length > int64(len(want)) {
			t.Fatalf("extent %+v after %d", e, at)
		}
		if len(bytes.Trim(want[at:e.Offset], "\x00")) > 0 {
			t.Fatalf("data between %d and %d is in no extent", at, e.Offset)
		}
		at = e.Offset + e.Length
		data += e.Length
	}
	if len(bytes.Trim(want[at:], "\x00")) > 0 {
		t.Fatalf("data behind %d is in no extent", at)
	}
	if data == 0 || t.Name() != "TestImagesReadLikeTheRawDisk/qcow2_with_allocated_zeros" &&
		t.Name() != "TestImagesReadLikeTheRawDisk/qcow2_with_preallocated_tables" && data > int64(len(want))/2 {
		t.Errorf("%d of %d bytes are in extents: holes were not found", data, len(want))
	}
}

// Images that machines wrote to: zero clusters, rewritten compressed clusters, snapshots, a dirty flag.
func TestImagesInUse(t *testing.T) {
	raw := rawDisk(t, testSize)
	for _, args := range [][]string{{"-O", "qcow2"}, {"-O", "qcow2", "-c"}, {"-O", "qcow2", "-o", "lazy_refcounts=on"}, {"-O", "vmdk"}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			dir := t.TempDir()
			p, flat := filepath.Join(dir, "image"), filepath.Join(dir, "flat")
			run(t, "qemu-img", append(append([]string{"convert", "-f", "raw"}, args...), raw, p)...)
			if args[1] == "qcow2" {
				run(t, "qemu-img", "snapshot", "-c", "before", p)
			}
			run(t, "qemu-io", "-f", args[1], "-c", "write -P 0xAB 100k 200k", "-c", "write -z 64k 128k", "-c", "write -z 6M 1M",
				"-c", "discard 0 64k", "-c", "write -P 0xCD 23M 3k", p)
			run(t, "qemu-img", "convert", "-f", args[1], "-O", "raw", p, flat)
			want, err := os.ReadFile(flat)
			if err != nil {
				t.Fatal(err)
			}
			img, f, err := open(p, Options{Format: Format(args[1])})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			checkContent(t, img, want)
			checkExtents(t, img, want)
		})
	}
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	raw := rawDisk(t, testSize)
	at := func(name string) string { return filepath.Join(dir, name) }
	run(t, "qemu-img", "convert", "-O", "qcow2", raw, at("base"))
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", at("base"), "-F", "qcow2", at("backed"))
	run(t, "qemu-img", "convert", "-O", "vmdk", raw, at("base.vmdk"))
	run(t, "qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, at("stream.vmdk"))
	run(t, "qemu-img", "create", "-q", "-f", "vmdk", "-b", at("base.vmdk"), "-F", "vmdk", at("backed.vmdk"))
	run(t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicFlat", at("flat.vmdk"), "1M")
	run(t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", at("split.vmdk"), "1M")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "extended_l2=on", at("extended"), "1M")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+at("data")+",data_file_raw=on", at("external"), "1M")
	// qemu-img measures how fast the processor derives keys, and gives up where it gets too little of it: on a busy
	// machine that is so now and then.
	for try := 1; ; try++ {
		out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=pw", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", at("encrypted"), "1M").CombinedOutput()
		if err == nil {
			break
		}
		if try == 10 {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
	}
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", at("huge"), "20T")
	run(t, "qemu-img", "create", "-q", "-f", "vdi", at("vdi"), "1M")
	run(t, "qemu-img", "create", "-q", "-f", "vhdx", at("vhdx"), "1M")
	cut := func(name string, keep float64) string {
		data, err := os.ReadFile(at(name))
		if err != nil {
			t.Fatal(err)
		}
		p := at(fmt.Sprintf("%s cut at %v", name, keep))
		if err := os.WriteFile(p, data[:int(float64(len(data))*keep)], 0o644); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if err := os.WriteFile(at("odd"), []byte("seventeen bytes !"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path    string
		options Options
		code    Code
	}{
		{at("odd"), Options{}, CodeUnknown},
		{at("odd"), Options{Format: Raw}, CodeTruncated},
		{at("base"), Options{Format: VMDK}, CodeUnknown},
		{raw, Options{Format: QCOW2}, CodeUnknown},
		{raw, Options{Format: "floppy"}, CodeUnknown},
		{raw, Options{MaxSize: 1 << 20}, CodeTooLarge},
		{at("base"), Options{MaxSize: 1 << 20}, CodeTooLarge},
		{at("base.vmdk"), Options{MaxSize: 1 << 20}, CodeTooLarge},
		{at("huge"), Options{}, CodeTooLarge},
		{at("backed"), Options{}, CodeBacking},
		{at("backed.vmdk"), Options{}, CodeBacking},
		{at("flat.vmdk"), Options{}, CodeUnsupported},
		{at("split.vmdk"), Options{}, CodeUnsupported},
		{at("split-s001.vmdk"), Options{}, CodeUnsupported},
		{at("extended"), Options{}, CodeUnsupported},
		{at("external"), Options{}, CodeUnsupported},
		{at("vdi"), Options{}, CodeUnsupported},
		{at("vhdx"), Options{}, CodeUnsupported},
		{at("encrypted"), Options{}, CodeEncrypted},
		{cut("base", 0.00001), Options{}, CodeTruncated},
		{cut("base", 0.02), Options{}, CodeTruncated},
		{cut("base", 0.5), Options{}, CodeTruncated},
		{cut("base.vmdk", 0.5), Options{}, CodeTruncated},
		{cut("stream.vmdk", 0.5), Options{}, CodeTruncated},
	} {
		img, f, err := open(c.path, c.options)
		if err == nil {
			// A file cut behind its tables opens; the extents tell before any data is read.
			for _, err = range img.Extents(context.Background()) {
				if err != nil {
					break
				}
			}
		}
		_ = f.Close()
		var e *Error
		if !errors.As(err, &e) || e.Code != c.code {
			t.Errorf("%s %+v: got %v, want %s", filepath.Base(c.path), c.options, err, c.code)
		}
	}
}

// FuzzOpen gives the readers files of strangers: each ends with a code or with a disk that can be read.
func FuzzOpen(f *testing.F) {
	raw := rawDisk(f, 256<<10)
	for _, v := range variants() {
		p := filepath.Join(f.TempDir(), "image")
		run(f, "qemu-img", append(append([]string{"convert", "-f", "raw"}, v.args...), raw, p)...)
		data, err := os.ReadFile(p)
		if err != nil {
			f.Fatal(err)
		}
		// Small seeds are mutated where it matters.
		if len(data) < 600<<10 {
			f.Add(data)
		}
	}
	const maxSize = 16 << 20
	p := make([]byte, 64<<10)
	f.Fuzz(func(t *testing.T, data []byte) {
		img, err := Open(bytes.NewReader(data), int64(len(data)), Options{MaxSize: maxSize})
		if err == nil {
			if img.Size() > maxSize {
				t.Fatalf("a disk of %d bytes", img.Size())
			}
			var e Extent
			for e, err = range img.Extents(context.Background()) {
				if err != nil {
					break
				}
				if e.Offset < 0 || e.Length <= 0 || e.Offset+e.Length > img.Size() {
					t.Fatalf("extent %+v of %d bytes", e, img.Size())
				}
				if _, err = img.ReadAt(p[:min(e.Length, int64(len(p)))], e.Offset); err != nil {
					break
				}
			}
		}
		var e *Error
		if err != nil && !errors.As(err, &e) {
			t.Errorf("an error without a code: %v", err)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	raw := rawDisk(b, 64<<20)
	for _, v := range variants() {
		b.Run(v.name, func(b *testing.B) {
			p := filepath.Join(b.TempDir(), "image")
			run(b, "qemu-img", append(append([]string{"convert", "-f", "raw"}, v.args...), raw, p)...)
			img, f, err := open(p, Options{})
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			b.SetBytes(img.Size())
			buffer := make([]byte, 64<<10)
			for b.Loop() {
				if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{io.NewSectionReader(img, 0, img.Size())}, buffer); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
