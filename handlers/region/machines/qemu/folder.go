package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// The names in the driver's folder, and in a machine's.
const (
	machinesDir   = "machines"
	epochFile     = "epoch"
	recordFile    = "machine.json"
	monitorSocket = "monitor"
	serialSocket  = "serial"
	logFile       = "log"
	devicesFile   = "devices"
	jailDir       = "jail"
	disksSocket   = "nbd"
)

// record is what is stored about a machine.
type record struct {
	Spec     machines.Spec     `json:"spec"`
	Hardware machines.Hardware `json:"hardware"`
	UID      uint32            `json:"uid,omitempty"` // of its own; 0: the agent's
	Process  processID         `json:"process"`
	Started  time.Time         `json:"started,omitzero"`
	Ready    bool              `json:"ready"` // Start has come to its end
	End      machines.End      `json:"end,omitempty"`
	Text     string            `json:"text,omitempty"`
}

func readEpoch(dir string) (int, error) {
	b, err := os.ReadFile(filepath.Join(dir, epochFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	} else if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

func writeEpoch(dir string, epoch int) error {
	return replace(filepath.Join(dir, epochFile), []byte(strconv.Itoa(epoch)+"\n"), true)
}

// replace writes a file whole or not at all; durable outlives a power cut, and everything outlives the agent.
func replace(path string, content []byte, durable bool) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil || !durable {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// folderOf is a machine's folder; tokens have no "@".
func (d *Driver) folderOf(id machines.ID) string {
	return filepath.Join(d.cfg.Dir, machinesDir, id.Environment+"@"+id.Machine)
}

func (d *Driver) jailOf(id machines.ID) string { return filepath.Join(d.folderOf(id), jailDir) }

// folders gives all machines that have a folder, with what is stored there. Of one that Start or Kill did not finish
// nothing may be stored, or nothing readable.
func (d *Driver) folders() (map[machines.ID]record, error) {
	entries, err := os.ReadDir(filepath.Join(d.cfg.Dir, machinesDir))
	if err != nil {
		return nil, err
	}
	all := map[machines.ID]record{}
	for _, e := range entries {
		env, name, ok := strings.Cut(e.Name(), "@")
		if !ok {
			continue
		}
		id := machines.ID{Environment: env, Machine: name}
		var r record
		b, err := os.ReadFile(filepath.Join(d.folderOf(id), recordFile))
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err != nil || r.Spec.ID != id {
			r = record{Spec: machines.Spec{ID: id}}
		}
		all[id] = r
	}
	return all, nil
}

func (d *Driver) store(r record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return replace(filepath.Join(d.folderOf(r.Spec.ID), recordFile), b, false)
}

// Paths of sockets have at most 107 bytes (unix(7)), and folders may be deep: sockets are reached through their open folder.

// listenAt makes a socket in a folder, for its owner only. One that is there is replaced.
func listenAt(dir, name string) (*net.UnixListener, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	path := throughFD(f, name)
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("%s is there and no socket", filepath.Join(dir, name))
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	// The mode of a socket before it is bound is that of its name in the file system: there is no moment with another one.
	var mode error
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return errors.Join(c.Control(func(fd uintptr) { mode = unix.Fchmod(int(fd), 0o600) }), mode)
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false) // the emulator has it too
	return u, nil
}

// dialAt connects to a socket in a folder.
func dialAt(ctx context.Context, dir, name string) (*net.UnixConn, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", throughFD(f, name))
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

func throughFD(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

const (
	// maxLog is what a log is cut at; the emulator may write maxFile at most.
	maxLog   = 1 << 20
	maxWords = 2000
	trimTime = time.Minute
)

// lastWords gives the end of the emulator's log.
func (d *Driver) lastWords(id machines.ID) string {
	return string(bytes.TrimSpace(tail(filepath.Join(d.folderOf(id), logFile), maxWords)))
}

func tail(path string, n int64) []byte {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil
	}
	b := make([]byte, min(n, end))
	got, _ := f.ReadAt(b, end-int64(len(b))) // as much as there is
	return b[:got]
}

// trimLogs keeps the emulators' logs short. They are opened for appending, so they may be cut at any time.
func (d *Driver) trimLogs() {
	tick := time.NewTicker(trimTime)
	defer tick.Stop()
	for {
		select {
		case <-d.ctx.Done():
			return
		case <-tick.C:
		}
		for _, m := range d.known() {
			path := filepath.Join(d.folderOf(m.id), logFile)
			if info, err := os.Stat(path); err != nil || info.Size() < maxLog {
				continue
			}
			words := tail(path, maxWords)
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
			if err != nil {
				continue
			}
			_, err = f.Write(words)
			if err := errors.Join(err, f.Close()); err != nil {
				d.cfg.Log.Warn("cut a machine's log", "machine", m.id.String(), "error", err)
			}
		}
	}
}
