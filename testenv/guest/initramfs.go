package guest

import (
	"bytes"
	"context"
	"debug/elf"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/tombolo-vdc/tombolo/handlers/fault"
)

// files are the guest's own: what init runs. They are laid over an empty root.
//
//go:embed root
var files embed.FS

// modules are what the guest loads, besides what these need: the rest of what it uses is in the kernel.
func modules() []string { return []string{"virtio_pci", "virtio_blk", "virtio_net", "button", "evdev"} }

// initramfs makes the archive that the kernel unpacks into its first root, which stays the only one.
func initramfs(ctx context.Context, p packages) ([]byte, error) {
	a := &archive{seen: map[string]bool{}}
	a.device("dev/console", 5, 1) // init's output before /dev is mounted
	shell, err := os.ReadFile(p.path("bin/busybox"))
	if err != nil {
		return nil, fault.Wrap(CodeBuild, err, "%s has no bin/busybox", busybox)
	}
	a.file("bin/busybox", 0o755, shell)
	applets, err := exec.CommandContext(ctx, p.path("bin/busybox"), "--list").Output()
	if err != nil {
		return nil, fault.Wrap(CodeBuild, err, "busybox does not run here")
	}
	for name := range strings.FieldsSeq(string(applets)) {
		if name != "busybox" {
			a.link("bin/"+name, "busybox")
		}
	}
	a.link("init", "bin/busybox")
	for _, d := range []string{"proc", "sys", "run", "data", "tmp"} {
		a.dir(d)
	}
	if err := fs.WalkDir(files, "root", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		text, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		mode := uint32(0o644)
		if bytes.HasPrefix(text, []byte("#!")) {
			mode = 0o755
		}
		a.file(strings.TrimPrefix(name, "root/"), mode, text)
		return nil
	}); err != nil {
		return nil, err
	}
	load, err := loadOrder(p)
	if err != nil {
		return nil, err
	}
	var list strings.Builder
	for _, m := range load {
		text, err := os.ReadFile(m.path)
		if err != nil {
			return nil, err
		}
		a.file("lib/modules/"+m.name+".ko", 0o644, text)
		fmt.Fprintln(&list, m.name)
	}
	a.file("lib/modules/load", 0o644, []byte(list.String()))
	return a.end(), nil
}

type module struct{ name, path string }

// loadOrder gives the modules and all that they need, each after what it needs.
func loadOrder(p packages) ([]module, error) {
	all := map[string]string{}
	err := filepath.WalkDir(p.path("lib/modules/"+p.kernel), func(name string, e fs.DirEntry, err error) error {
		if m, ok := strings.CutSuffix(filepath.Base(name), ".ko"); ok {
			all[strings.ReplaceAll(m, "-", "_")] = name
		}
		return err
	})
	if err != nil {
		return nil, fault.Wrap(CodeBuild, err, "the kernel's package has no modules")
	}
	var order []module
	var add func(name string) error
	add = func(name string) error {
		file, ok := all[name]
		if !ok || slices.ContainsFunc(order, func(m module) bool { return m.name == name }) {
			return nil // loaded before, or a part of this kernel: a guest that misses it says so when it boots
		}
		needs, err := dependencies(file)
		if err != nil {
			return err
		}
		for _, n := range needs {
			if err := add(n); err != nil {
				return err
			}
		}
		order = append(order, module{name, file})
		return nil
	}
	for _, m := range modules() {
		if err := add(m); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// dependencies reads what a module says in its .modinfo section.
func dependencies(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fault.Wrap(CodeBuild, err, "%s is not a plain module", filepath.Base(file))
	}
	defer f.Close()
	info := f.Section(".modinfo")
	if info == nil {
		return nil, fault.New(CodeBuild, "%s has no .modinfo", filepath.Base(file))
	}
	data, err := info.Data()
	if err != nil {
		return nil, err
	}
	for line := range strings.SplitSeq(string(data), "\x00") {
		if list, ok := strings.CutPrefix(line, "depends="); ok && list != "" {
			return strings.Split(strings.ReplaceAll(list, "-", "_"), ","), nil
		}
	}
	return nil, nil
}

// archive is a cpio archive in the format that the kernel's early user space is specified with ("newc",
// Documentation/driver-api/early-userspace/buffer-format.rst). All entries are root's and of no time.
type archive struct {
	bytes.Buffer
	entries int
	seen    map[string]bool
}

const (
	typeFile   = 0o100000
	typeDir    = 0o040000
	typeLink   = 0o120000
	typeDevice = 0o020000
)

func (a *archive) entry(name string, mode uint32, major, minor int, data []byte) {
	if dir := path.Dir(name); dir != "." && name != "TRAILER!!!" {
		a.dir(dir)
	}
	a.entries++
	// magic, inode, mode, uid, gid, links, mtime, size, device (2), its own device (2), length of the name, checksum
	fmt.Fprintf(a, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		a.entries, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	a.pad()
	a.Write(data)
	a.pad()
}

func (a *archive) pad() { a.Write(make([]byte, -a.Len()&3)) }

func (a *archive) dir(name string) {
	if !a.seen[name] {
		a.seen[name] = true
		a.entry(name, typeDir|0o755, 0, 0, nil)
	}
}

func (a *archive) file(name string, mode uint32, data []byte) {
	a.entry(name, typeFile|mode, 0, 0, data)
}
func (a *archive) link(name, target string) { a.entry(name, typeLink|0o777, 0, 0, []byte(target)) }
func (a *archive) device(name string, major, minor int) {
	a.entry(name, typeDevice|0o600, major, minor, nil)
}

func (a *archive) end() []byte {
	a.entry("TRAILER!!!", 0, 0, 0, nil)
	return a.Bytes()
}
