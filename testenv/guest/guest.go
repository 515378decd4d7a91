// Package guest builds the machine that tests and the demo run: Debian's cloud kernel and busybox on a disk of their own, a
// raw image that a BIOS boots. It answers on port 80, has a login shell on its first serial port and its screen, and shuts
// down when its power button is pressed. One image serves every machine: name and addresses come by DHCP.
//
// Nothing is installed and nothing needs root: the packages are downloaded from the mirrors that this machine's apt is
// configured with, unpacked into a directory, and their boot loader is run from there.
//
// What it answers to GET, each in plain text but the first:
//
//	/             its Answer, as JSON
//	/write?text=  adds a line to a file on its disk; written through when the answer comes
//	/read         that file
//	/peer?url=    what another machine answers to a GET from here; 502 with the reason if it does not
//	/ping?host=   ICMP echo to a name or an address; 502 if nothing comes back
//	/ticks        a line with the counter every second, until the connection ends
//	/bytes?n=     n bytes
package guest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/fault"
)

// Code is a stable, searchable name for a kind of failure.
type Code string

// The codes of this package's errors.
const (
	CodePackages Code = "guest-packages" // Debian's packages cannot be had here
	CodeBuild    Code = "guest-build"    // a package is not as expected, or a tool failed
)

// Error is a failure with a stable code.
type Error = fault.Error[Code]

// Answer is what the guest says of itself.
type Answer struct {
	BootID     string      `json:"boot_id"` // another one after every boot
	Uptime     float64     `json:"uptime"`  // seconds since the boot
	Hostname   string      `json:"hostname"`
	Interfaces []Interface `json:"interfaces"`
	Counter    Counter     `json:"counter"`
}

// Interface is one of the guest's network interfaces.
type Interface struct {
	Name      string   `json:"name"`
	MAC       string   `json:"mac"`
	Addresses []string `json:"addresses"` // IPv4, with the length of the prefix
}

// Counter is kept by one process that lives as long as the guest runs and holds its file on the disk open: it adds one each
// second and goes on after a boot where it was.
type Counter struct {
	Value   int     `json:"value"`   // read from the disk, through the open file
	PID     int     `json:"pid"`     // of that process
	Started float64 `json:"started"` // when the process began, in seconds of uptime
	Open    bool    `json:"open"`    // it still has the file open
}

// Options say what to build. The zero value is a guest with a data partition of 32 MiB.
type Options struct {
	Cache string // where packages and images are kept; empty: below the user's cache directory
	Data  int64  // bytes of the data partition, whole MiB, at least 8 MiB; 0: 32 MiB
}

// Image is a disk image, for reading only: others use it too.
type Image struct {
	Path   string // raw
	Size   int64  // bytes
	Kernel string // Debian's name for the kernel, such as "6.1.0-31-cloud-amd64"
}

const (
	mib         = 1 << 20
	defaultData = 32 * mib
	leastData   = 8 * mib
)

// Build gives the image of this machine's Debian and of these options, from the cache where it is there already. Several
// processes may call it at once: one builds, the others wait. Errors: CodePackages, CodeBuild, the context's.
func Build(ctx context.Context, o Options) (Image, error) {
	if o.Data == 0 {
		o.Data = defaultData
	}
	if o.Data < leastData || o.Data%mib != 0 {
		return Image{}, fault.New(CodeBuild, "a data partition of %d bytes: whole MiB are needed, 8 at least", o.Data)
	}
	if o.Cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			base = os.TempDir() // a user without a home, as services have it
		}
		o.Cache = filepath.Join(base, "tombolo", "guest")
	}
	if err := os.MkdirAll(o.Cache, 0o755); err != nil {
		return Image{}, err
	}
	unlock, err := lock(ctx, filepath.Join(o.Cache, "lock"))
	if err != nil {
		return Image{}, err
	}
	defer unlock()
	p, err := fetch(ctx, o.Cache)
	if err != nil {
		return Image{}, err
	}
	ram, err := initramfs(ctx, p)
	if err != nil {
		return Image{}, err
	}
	sum := sha256.New()
	fmt.Fprint(sum, p.versions, o.Data, layout, bootConfig)
	sum.Write(ram)
	image := Image{Path: filepath.Join(o.Cache, fmt.Sprintf("guest-%x.raw", sum.Sum(nil)[:8])), Kernel: p.kernel}
	info, err := os.Stat(image.Path)
	if errors.Is(err, os.ErrNotExist) {
		if err := writeDisk(ctx, image.Path, p, ram, o.Data); err != nil {
			return Image{}, err
		}
		info, err = os.Stat(image.Path)
	}
	if err != nil {
		return Image{}, err
	}
	image.Size = info.Size()
	return image, nil
}

// lock waits until no other process has the file locked.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	retry := time.NewTicker(50 * time.Millisecond)
	defer retry.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(err, f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-retry.C:
		}
	}
}

// CopyTo writes the image to path, which appears whole or not at all, as a sparse file.
func (i Image) CopyTo(path string) (err error) {
	from, err := os.Open(i.Path)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.partial")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, to.Close(), os.Remove(to.Name()))
		}
	}()
	zeros, block := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); at < i.Size; at += int64(len(block)) {
		n, err := from.ReadAt(block, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if string(block[:n]) != string(zeros[:n]) {
			if _, err := to.WriteAt(block[:n], at); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(to.Truncate(i.Size), to.Chmod(0o644), os.Rename(to.Name(), path)); err != nil {
		return err
	}
	return to.Close()
}
