package nbd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what unix(7) leaves room for, with the byte that ends it.
const maxSocketPath = 107

// SocketPath gives the path of the socket name in dir. Where it is too long for a socket, it is one in a folder of the
// user's own below the system's folder for temporary files, always the same for the same path.
func SocketPath(dir, name string) (string, error) {
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		return "", wrap(SocketUnusable, err, "%s", dir)
	}
	if len(path) <= maxSocketPath {
		return path, nil
	}
	sum := sha256.Sum256([]byte(path))
	own := filepath.Join(os.TempDir(), fmt.Sprintf("tombolo-%d", os.Getuid()))
	path = filepath.Join(own, hex.EncodeToString(sum[:8]))
	if len(path) > maxSocketPath {
		return "", errorf(SocketPathLong, "%s is longer than %d bytes", path, maxSocketPath)
	}
	return path, nil
}

// listener is a socket with the lock beside it.
type listener struct {
	*net.UnixListener
	lock *os.File
	once sync.Once
	err  error
}

// Listen serves on a unix socket at path, for this user only. One that a process left behind is replaced: the lock
// path+".lock" tells whether it still runs. Errors: socket-path-long, socket-in-use, socket-unusable.
func Listen(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, errorf(SocketPathLong, "%s is longer than %d bytes", path, maxSocketPath)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, wrap(SocketUnusable, err, "make %s", dir)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, wrap(SocketUnusable, err, "look at %s", dir)
	}
	// In a folder of somebody else the socket could be replaced by another one.
	if int(st.Uid) != os.Getuid() {
		return nil, errorf(SocketUnusable, "%s belongs to another user", dir)
	}
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, wrap(SocketUnusable, err, "open the lock")
	}
	l, err := listen(path, lock)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return &listener{UnixListener: l, lock: lock}, nil
}

func listen(path string, lock *os.File) (*net.UnixListener, error) {
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, errorf(SocketInUse, "another process serves on %s", path)
	} else if err != nil {
		return nil, wrap(SocketUnusable, err, "lock %s", path)
	}
	info, err := os.Lstat(path)
	switch {
	case err == nil && info.Mode().Type() != fs.ModeSocket:
		return nil, errorf(SocketUnusable, "%s is there and no socket", path)
	case err == nil:
		if err := os.Remove(path); err != nil {
			return nil, wrap(SocketUnusable, err, "remove the old socket")
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, wrap(SocketUnusable, err, "look at %s", path)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, wrap(SocketUnusable, err, "listen on %s", path)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(wrap(SocketUnusable, err, "protect %s", path), l.Close())
	}
	return l, nil
}

// Close removes the socket and then frees it for another process.
func (l *listener) Close() error {
	l.once.Do(func() { l.err = errors.Join(l.UnixListener.Close(), l.lock.Close()) })
	return l.err
}

// WaitUnserved returns when no process serves on the socket any more.
func WaitUnserved(ctx context.Context, path string) error {
	lock, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return wrap(SocketUnusable, err, "open the lock")
	}
	free := make(chan error, 1)
	go func() {
		// Not to be interrupted; who gives up waiting leaves it behind until the process has ended.
		free <- unix.Flock(int(lock.Fd()), unix.LOCK_EX)
		lock.Close()
	}()
	select {
	case err := <-free:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
