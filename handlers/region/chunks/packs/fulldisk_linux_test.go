package packs

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/chunkstest"
)

// TestFullDisk fills a real file system: a small tmpfs, in a process with mounts of its own.
func TestFullDisk(t *testing.T) {
	if dir := os.Getenv("CHUNKS_TMPFS"); dir != "" {
		for name, o := range map[string]Options{
			"the reserve is kept":     {PackSize: small.PackSize},
			"the disk fills entirely": {PackSize: small.PackSize, Reserve: 1},
		} {
			t.Run(name, func(t *testing.T) { fillDisk(t, dir, o) })
		}
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestFullDisk$", "-test.v")
	cmd.Env = append(os.Environ(), "CHUNKS_TMPFS="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
	}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, syscall.EPERM) {
		t.Skip("this host gives no mount namespace without root; TestFullAnywhere covers the behaviour")
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func fillDisk(t *testing.T, dir string, o Options) {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, dir, o)
	disk := chunkstest.Disk(6, 12)
	r := mustPublish(t, s, "a", disk)
	_, err := publish(t, s, "b", chunkstest.Disk(7, 300))
	wantCode(t, err, chunks.StoreFull)
	if errors.Is(err, syscall.ENOSPC) && o.Reserve == 0 {
		t.Fatalf("the reserve was used: %v", err)
	}
	usableAfterFull(t, s, r, disk)
	mustClose(t, s)
	s = mustOpen(t, dir, o)
	defer mustClose(t, s)
	if len(readAll(t, s, r.Digest)) != len(disk) {
		t.Fatal("the disk is not whole")
	}
}
