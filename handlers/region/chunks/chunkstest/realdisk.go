package chunkstest

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

var errEnough = errors.New("enough")

// RealDisk writes a file of size bytes: of every 4 MiB one is zeros, the rest is an archive of the Go tree (sources,
// programs, tests). Where the tree is too small it comes again, shifted, so that blocks do not repeat.
func RealDisk(tb testing.TB, path string, size int64) {
	tb.Helper()
	root, err := exec.CommandContext(tb.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		tb.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		tb.Fatal(err)
	}
	w := &stripes{f: f, size: size}
	out := bufio.NewWriterSize(w, 1<<20)
	for err == nil {
		_, err = out.WriteString("shift")
		if err == nil {
			err = archive(out, strings.TrimSpace(string(root)))
		}
	}
	if !errors.Is(err, errEnough) {
		tb.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Sync(), f.Close()); err != nil {
		tb.Fatal(err)
	}
}

func archive(out io.Writer, root string) error {
	w := tar.NewWriter(out)
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := w.WriteHeader(&tar.Header{Name: path, Size: int64(len(b)), Mode: 0o644}); err != nil {
			return err
		}
		_, err = w.Write(b)
		return err
	})
}

// stripes leaves out the last MiB of every 4.
type stripes struct {
	f        *os.File
	at, size int64
}

func (s *stripes) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if within := s.at % (4 << 20); within >= 3<<20 {
			s.at += 4<<20 - within
		}
		if s.at >= s.size {
			return n, errEnough
		}
		part := p[n:min(int64(len(p)), int64(n)+3<<20-s.at%(4<<20))]
		part = part[:min(int64(len(part)), s.size-s.at)]
		if _, err := s.f.WriteAt(part, s.at); err != nil {
			return n, err
		}
		n += len(part)
		s.at += int64(len(part))
	}
	return n, nil
}

// PeakRSS gives the most memory that the process ever had resident, in bytes (VmHWM, proc(5)).
func PeakRSS(tb testing.TB) int64 {
	tb.Helper()
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		tb.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, err := strconv.ParseInt(kib, 10, 64)
	if err != nil {
		tb.Fatal(err)
	}
	return n << 10
}
