package region

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
)

// uploads takes in the disks of environments that are being made:
//
//	PUT  /v1/uploads/{environment}/{node}/{disk}            Content-Range: bytes FIRST-LAST/SIZE
//	POST /v1/uploads/{environment}/{node}/{disk}/complete
//
// Ranges may come in any order, again, and in several connections; what no
// range covers is zeros. What came in survives a restart of the agent. Nothing
// is taken that no open order asks for.
type uploads struct {
	agent *Agent
	mu    sync.Mutex
	owed  int64 // bytes of the requests under way
}

func (u *uploads) register(mux *http.ServeMux) {
	mux.HandleFunc("PUT /v1/uploads/{environment}/{node}/{disk}", u.handle(u.put))
	mux.HandleFunc("POST /v1/uploads/{environment}/{node}/{disk}/complete", u.handle(u.finish))
}

// dir holds what came in for one order; it carries the order's id as its name.
func (u *uploads) dir(w events.WorkID) string {
	return filepath.Join(u.agent.cfg.Dir, "uploads", string(w))
}

// path is where a disk ("<node>/<item>") is put together.
func (u *uploads) path(w events.WorkID, disk string) string {
	return filepath.Join(u.dir(w), strings.ReplaceAll(disk, "/", "."))
}

func (u *uploads) complete(w events.WorkID, disk string) bool {
	_, err := os.Stat(u.path(w, disk) + ".complete")
	return err == nil
}

func (u *uploads) drop(w events.WorkID) error {
	defer u.agent.around(RemoveUpload)()
	return os.RemoveAll(u.dir(w))
}

// problem is an answer of RFC 9457, with our code.
type problem struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Code   string `json:"code"`
	Next   string `json:"next,omitempty"`
}

func (p *problem) Error() string { return p.Detail }

func refuse(status int, code, format string, args ...any) *problem {
	return &problem{Status: status, Title: http.StatusText(status), Detail: fmt.Sprintf(format, args...), Code: code}
}

func (p *problem) write(w http.ResponseWriter, log *slog.Logger) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	if err := json.NewEncoder(w).Encode(p); err != nil {
		log.Debug("a refusal was not taken", "error", err)
	}
}

// upload is one request for one wanted disk.
type upload struct {
	work events.WorkID
	disk events.DiskWanted
}

func (u *uploads) handle(next func(*http.Request, upload) *problem) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		up, p := u.find(r)
		if p == nil {
			p = next(r, up)
		}
		if p == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		p.write(w, u.agent.cfg.Log)
	}
}

// orderPatience is how long an upload waits for its order: who was told that an
// environment is declared may be faster than the order that follows.
const orderPatience = 5 * time.Second

// find is the open order that waits for the disk, if the asker may serve it.
func (u *uploads) find(r *http.Request) (upload, *problem) {
	account, err := u.agent.cfg.Authorize(r, u.agent.feed)
	if err != nil {
		return upload{}, refuse(http.StatusUnauthorized, "not-authenticated", "%v", err)
	}
	ctx, cancel := context.WithTimeout(r.Context(), orderPatience)
	defer cancel()
	for {
		position, up, p := u.look(r, account)
		if p == nil || p.Code != notWanted {
			return up, p
		}
		if err := u.agent.feed.WaitFor(ctx, position+1, "work-orders"); err != nil {
			return up, p
		}
	}
}

const notWanted = "upload-not-wanted"

// look is find at the position where the projections are.
func (u *uploads) look(r *http.Request, account events.AccountID) (uint64, upload, *problem) {
	view, err := u.agent.feed.Now("work-orders")
	if err != nil {
		return 0, upload{}, u.internal(err)
	}
	defer view.Close()
	environment, disk := events.EnvironmentID(r.PathValue("environment")), r.PathValue("node")+"/"+r.PathValue("disk")
	open, err := openOrders(view, u.agent.cfg.Region)
	if err != nil {
		return 0, upload{}, u.internal(err)
	}
	for _, o := range open {
		if o.Kind != events.WorkReceive || o.Order.Environment != environment || o.Undo ||
			account != o.Account && account != events.None {
			continue
		}
		for _, d := range o.Order.Disks {
			if d.Name == disk {
				return 0, upload{o.Work, d}, nil
			}
		}
		return 0, upload{}, refuse(http.StatusNotFound, "disk-unknown", "environment %s has no disk %s", environment, disk)
	}
	p := refuse(http.StatusNotFound, notWanted, "%s waits for no disk of environment %s", u.agent.cfg.Region, environment)
	p.Next = "create the environment first; send its disks before its upload expires"
	return view.Position(), upload{}, p
}

func (u *uploads) internal(err error) *problem {
	u.agent.cfg.Log.Error("an upload has failed", "error", err)
	if errors.Is(err, syscall.ENOSPC) {
		return refuse(http.StatusInsufficientStorage, "store-full", "the region's disk is full")
	}
	return refuse(http.StatusInternalServerError, "internal", "the region could not store it; its log says why")
}

func (u *uploads) put(r *http.Request, up upload) *problem {
	var first, last, size int64
	if n, err := fmt.Sscanf(r.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size); n != 3 || err != nil || first < 0 || last < first || last >= size {
		return refuse(http.StatusBadRequest, "bad-range", "Content-Range %q is not bytes FIRST-LAST/SIZE", r.Header.Get("Content-Range"))
	}
	if size != up.disk.Bytes {
		return refuse(http.StatusConflict, "disk-size-differs", "disk %s was declared with %d bytes, not %d", up.disk.Name, up.disk.Bytes, size)
	}
	if u.complete(up.work, up.disk.Name) {
		return refuse(http.StatusConflict, "upload-complete", "disk %s has come in already", up.disk.Name)
	}
	want := last - first + 1
	done, err := u.room(want)
	if err != nil {
		return u.internal(err)
	}
	defer done()
	f, err := u.open(up)
	if err != nil {
		return u.internal(err)
	}
	defer f.Close()
	n, err := io.Copy(io.NewOffsetWriter(f, first), io.LimitReader(r.Body, want))
	var pathError *os.PathError
	switch {
	case errors.As(err, &pathError):
		return u.internal(err)
	case err != nil || n < want:
		return refuse(http.StatusBadRequest, "upload-cut", "%d of %d bytes came; send the range again", n, want)
	}
	return nil
}

// A part of the disk that uploads never take, so that the agent itself can go on
// where they would fill it: a twentieth, and at most keptBytes.
const (
	keptShare = 20
	keptBytes = 256 << 20
)

// room makes sure that so many bytes more fit; call what it gives when they have
// come. Error: syscall.ENOSPC.
func (u *uploads) room(want int64) (done func(), err error) {
	var disk syscall.Statfs_t
	if err := syscall.Statfs(u.agent.cfg.Dir, &disk); err != nil {
		return nil, err
	}
	kept := min(int64(disk.Blocks)*disk.Bsize/keptShare, keptBytes)
	u.mu.Lock()
	defer u.mu.Unlock()
	if int64(disk.Bavail)*disk.Bsize-u.owed < want+kept {
		return nil, fmt.Errorf("%d bytes more, and %d under way, leave less than %d: %w", want, u.owed, kept, syscall.ENOSPC)
	}
	u.owed += want
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.owed -= want
	}, nil
}

func (u *uploads) open(up upload) (*os.File, error) {
	if err := os.MkdirAll(u.dir(up.work), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(u.path(up.work, up.disk.Name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(up.disk.Bytes); err != nil { // grows it, or changes nothing
		f.Close()
		return nil, err
	}
	return f, nil
}

func (u *uploads) finish(_ *http.Request, up upload) *problem {
	if u.complete(up.work, up.disk.Name) {
		return nil
	}
	f, err := u.open(up)
	if err == nil {
		err = f.Sync()
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err == nil {
		err = writeDurably(u.path(up.work, up.disk.Name)+".complete", nil)
	}
	if err != nil {
		return u.internal(err)
	}
	u.agent.wake()
	return nil
}
