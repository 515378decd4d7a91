package qemu

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// cgroup gives the folder of cgroup v2 in which machines' groups are made, or why there is none. A group that has
// processes cannot have groups with limits in it (cgroup v2, "No Internal Process Constraint"), so that of the agent
// itself is no use: it is the one above.
func (d *Driver) cgroup() (string, error) {
	dir := d.cfg.Cgroup
	if dir == "" {
		b, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			return "", err
		}
		_, own, ok := strings.Cut("\n"+string(b), "\n0::")
		own, _, _ = strings.Cut(own, "\n")
		if !ok || own == "/" {
			return "", errors.New("this host gives the agent no group of cgroup v2")
		}
		dir = filepath.Join("/sys/fs/cgroup", filepath.Dir(own))
	}
	active, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if err != nil {
		return "", fmt.Errorf("%s is no group of cgroup v2", dir)
	}
	if !bytes.Contains(active, []byte("memory")) {
		return "", fmt.Errorf("%s does not limit memory (cgroup.subtree_control)", dir)
	}
	if err := unix.Access(dir, unix.W_OK); err != nil {
		return "", fmt.Errorf("%s is not delegated to the agent", dir)
	}
	return dir, nil
}

// groupOf is a machine's group.
func (d *Driver) groupOf(dir string, id machines.ID) string {
	return filepath.Join(dir, "tombolo-"+strings.Split(d.tag, "/")[1]+"-"+id.Environment+"@"+id.Machine)
}

// joinGroup makes a machine's group with its limits and gives its folder, to start the emulator in.
func (d *Driver) joinGroup(s machines.Spec) (*os.File, error) {
	dir, err := d.cgroup()
	if err != nil {
		return nil, err
	}
	group := d.groupOf(dir, s.ID)
	if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	const own = 512 << 20 // the emulator's, beside its guest's
	if err := set(group, "memory.max", strconv.FormatInt(s.Memory+own, 10)); err != nil {
		return nil, err
	}
	// As far as these controllers are there.
	for file, value := range map[string]string{
		"cpu.max":  fmt.Sprintf("%d 100000", (s.CPUs+1)*100000), // one more for what devices do
		"pids.max": strconv.Itoa(s.CPUs + 128),                  // threads
	} {
		if err := set(group, file, value); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	return os.Open(group)
}

func set(group, file, value string) error {
	f, err := os.OpenFile(filepath.Join(group, file), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// leaveGroup removes the group of a machine that has no process any more.
func (d *Driver) leaveGroup(id machines.ID) error {
	dir, err := d.cgroup()
	if err != nil {
		return nil
	}
	if err := os.Remove(d.groupOf(dir, id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
