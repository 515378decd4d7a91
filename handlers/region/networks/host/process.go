package host

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// socketName is the name of the process's socket in its directory.
const socketName = "host.sock"

// pidName is the file with the process's id, for one that has to be ended.
const pidName = "host.pid"

// ready is what the process writes to whoever started it, once it can be asked.
const ready = "ready\n"

// lookEvery is how often the process looks whether its directory is still there.
const lookEvery = 10 * time.Second

// Run is the region's host process: it opens the substrate, says "ready" on the file where there is one, and serves until it
// is asked to stop, the context ends, or somebody takes the directory away. Error: what nbd.Listen answers where another
// process serves the directory.
func Run(ctx context.Context, dir, version string, open func(dir string) (networks.Substrate, error), started io.WriteCloser) (err error) {
	path, err := nbd.SocketPath(dir, socketName)
	if err != nil {
		return err
	}
	l, err := nbd.Listen(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := os.WriteFile(filepath.Join(dir, pidName), []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		return err
	}
	s, err := open(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer cancel()
		whileThere(ctx, dir)
	}()
	if started != nil {
		_, err := io.WriteString(started, ready)
		if err := errors.Join(err, started.Close()); err != nil {
			return err
		}
	}
	return Serve(ctx, l, s, hello{Protocol: Protocol, Version: version, PID: os.Getpid()})
}

// whileThere returns when the directory is gone, or another one is in its place: nobody would find this process there.
func whileThere(ctx context.Context, dir string) {
	ours, err := os.Stat(dir)
	if err != nil {
		return
	}
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			if now, err := os.Stat(filepath.Clean(dir)); err != nil || !os.SameFile(ours, now) {
				return
			}
		}
	}
}
