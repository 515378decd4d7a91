package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/tombolo-vdc/tombolo/handlers/fault"
)

// layout is raised when the disk is laid out differently, so that no image of before is taken for one of now.
const layout = 1

const (
	sector    = 512
	bootStart = 1 * mib // of the partition that is booted from: the first MiB has the partition table
)

// bootConfig is the boot loader's.
//
// The kernel's messages go to the screen and to the first serial port. What follows spares a guest without hardware the
// search for it, and an emulated processor work that does nothing for it.
const bootConfig = `DEFAULT guest
PROMPT 0
TIMEOUT 0
NOESCAPE 1
LABEL guest
  KERNEL vmlinuz
  INITRD initramfs
  APPEND console=tty0 console=ttyS0,115200 panic=-1 loglevel=6 mitigations=off cryptomgr.notests
`

// writeDisk writes the image to path, which appears whole or not at all.
func writeDisk(ctx context.Context, path string, p packages, ram []byte, data int64) (err error) {
	work, err := os.MkdirTemp(filepath.Dir(path), ".image-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	kernel := p.path("boot/vmlinuz-" + p.kernel)
	info, err := os.Stat(kernel)
	if err != nil {
		return fault.Wrap(CodeBuild, err, "the kernel's package has no kernel")
	}
	boot := (info.Size()+int64(len(ram)))/mib*mib + 8*mib // of it some for the boot loader, and FAT16 begins at 4085 clusters
	image, config, archive := filepath.Join(work, "image"), filepath.Join(work, "syslinux.cfg"), filepath.Join(work, "initramfs")
	table, err := partitions(p, boot, data)
	if err != nil {
		return err
	}
	if err := errors.Join(
		os.WriteFile(image, table, 0o444|0o200),
		os.Truncate(image, bootStart+boot+data),
		os.WriteFile(config, []byte(bootConfig), 0o644),
		os.WriteFile(archive, ram, 0o644),
	); err != nil {
		return err
	}
	fat := image + "@@" + strconv.Itoa(bootStart)
	for _, c := range []*exec.Cmd{
		p.command(ctx, "mformat", "-i", fat, "-T", strconv.FormatInt(boot/sector, 10), "-h", "64", "-s", "32",
			"-H", strconv.Itoa(bootStart/sector), "-N", "70626D6C", "::"),
		p.command(ctx, "syslinux", "--install", "--offset", strconv.Itoa(bootStart), image),
		p.command(ctx, "mcopy", "-i", fat, kernel, "::vmlinuz"),
		p.command(ctx, "mcopy", "-i", fat, archive, "::initramfs"),
		p.command(ctx, "mcopy", "-i", fat, config, "::syslinux.cfg"),
		exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-L", "data", "-m", "0",
			"-E", fmt.Sprintf("offset=%d,lazy_itable_init=0,lazy_journal_init=0", bootStart+boot), image, strconv.FormatInt(data>>10, 10)+"k"),
	} {
		if err := run(c); err != nil {
			return err
		}
	}
	if err := os.Chmod(image, 0o444); err != nil {
		return err
	}
	return os.Rename(image, path)
}

// partitions is the first sector: the boot loader's first stage, and two entries of a table as PCs know it.
func partitions(p packages, boot, data int64) ([]byte, error) {
	const code, table, entry = 440, 446, 16
	first, err := os.ReadFile(p.path("usr/lib/syslinux/mbr/mbr.bin"))
	if err != nil || len(first) > code {
		return nil, fault.Wrap(CodeBuild, err, "the boot loader's first stage of %d bytes cannot be used", len(first))
	}
	b := make([]byte, sector)
	copy(b, first)
	copy(b[code:], "tmbl") // a disk's signature: any that is not zero
	for i, part := range []struct {
		active, kind byte
		start, size  int64
	}{
		{0x80, 0x0e, bootStart, boot}, // FAT16, by block address
		{0, 0x83, bootStart + boot, data},
	} {
		e := b[table+i*entry:]
		e[0], e[4] = part.active, part.kind
		copy(e[1:], "\xfe\xff\xff") // beyond what cylinders can say
		copy(e[5:], "\xfe\xff\xff")
		binary.LittleEndian.PutUint32(e[8:], uint32(part.start/sector))
		binary.LittleEndian.PutUint32(e[12:], uint32(part.size/sector))
	}
	b[510], b[511] = 0x55, 0xaa
	return b, nil
}
