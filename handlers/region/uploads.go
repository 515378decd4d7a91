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
	"github.com/tombolo-vdc/tombolo/handlers/trust"
	"github.com/tombolo-vdc/tombolo/projections"
)

// uploads takes in the disks of environments that are being made:
//
//	PUT  /v1/uploads/{environment}/{node}/{disk}            Content-Range: bytes FIRST-LAST/SIZE
//	POST /v1/uploads/{environment}/{node}/{disk}/complete
//
// Ranges may come in any order, again, and in several connections; what no
// range covers is zeros. What came in survives a restart of the agent. Nothing
// is taken that no open order asks for, and no range changes a disk that is
// complete: from then on it is taken into the chunk store (upload-complete).
type uploads struct {
	agent *Agent
	mu    sync.Mutex
	owed  int64            // bytes of the requests under way
	gates map[string]*gate // of the disks with requests under way, by path
}

// gate is what the requests for one disk share: those that write hold it for
// reading, one that closes it for writing. What is written through it is
// therefore written before the disk is complete, or not at all.
type gate struct {
	sync.RWMutex
	closed bool
	users  int // guarded by uploads.mu
}

func newUploads(a *Agent) *uploads { return &uploads{agent: a, gates: map[string]*gate{}} }

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

// enter gives the disk's gate, which the caller leaves when its request is done.
func (u *uploads) enter(up upload) (g *gate, leave func(), err error) {
	path := u.path(up.work, up.disk.Name)
	u.mu.Lock()
	defer u.mu.Unlock()
	g = u.gates[path]
	if g == nil {
		// The marker is gone again once the environment is there, which then says it.
		closed := u.complete(up.work, up.disk.Name)
		if !closed {
			if closed, err = u.agent.madeBy(up.environment, up.work); err != nil {
				return nil, nil, err
			}
		}
		g = &gate{closed: closed}
		u.gates[path] = g
	}
	g.users++
	return g, func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if g.users--; g.users == 0 {
			delete(u.gates, path)
		}
	}, nil
}

// gated writes to the staging file for as long as the disk is not complete.
type gated struct {
	gate *gate
	to   io.Writer
}

var errComplete = errors.New("the disk is complete")

func (g gated) Write(p []byte) (int, error) {
	g.gate.RLock()
	defer g.gate.RUnlock()
	if g.gate.closed {
		return 0, errComplete
	}
	return g.to.Write(p)
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

// unauthorized is for whom Authorize does not let in.
func unauthorized(err error) *problem {
	if t, ok := errors.AsType[*trust.Error](err); ok {
		p := refuse(http.StatusUnauthorized, string(t.Code), "%s", t.Text)
		p.Next = t.Next
		return p
	}
	return refuse(http.StatusUnauthorized, "not-authenticated", "%v", err)
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
	work        events.WorkID
	environment events.EnvironmentID
	disk        events.DiskWanted
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
	account, err := u.agent.cfg.Authorize(r, u.agent.feed, events.EnvironmentID(r.PathValue("environment")))
	if err != nil {
		return upload{}, unauthorized(err)
	}
	ctx, cancel := context.WithTimeout(r.Context(), orderPatience)
	defer cancel()
	for {
		position, up, p := u.look(r, account)
		if p == nil || p.Code != notWanted {
			return up, p
		}
		if err := u.agent.feed.WaitFor(ctx, position+1, "environments", "work-orders"); err != nil {
			return up, p
		}
	}
}

const notWanted = "upload-not-wanted"

// look is find at the position where the projections are.
func (u *uploads) look(r *http.Request, account events.AccountID) (uint64, upload, *problem) {
	view, err := u.agent.feed.Now("environments", "work-orders")
	if err != nil {
		return 0, upload{}, u.internal(err)
	}
	defer view.Close()
	environment, disk := events.EnvironmentID(r.PathValue("environment")), r.PathValue("node")+"/"+r.PathValue("disk")
	work, err := u.receiving(view, environment, account)
	if err != nil {
		return 0, upload{}, u.internal(err)
	}
	if work == "" {
		p := refuse(http.StatusNotFound, notWanted, "%s waits for no disk of environment %s", u.agent.cfg.Region, environment)
		p.Next = "create the environment first; send its disks before its upload expires"
		return view.Position(), upload{}, p
	}
	order, _, err := projections.WorkOrders{}.Order(view, work)
	if err != nil {
		return 0, upload{}, u.internal(err)
	}
	for _, d := range order.Disks {
		if d.Name == disk {
			return 0, upload{work, environment, d}, nil
		}
	}
	return 0, upload{}, refuse(http.StatusNotFound, "disk-unknown", "environment %s has no disk %s", environment, disk)
}

// receiving is the open order of this region that takes the environment's disks
// in; empty where there is none that the account may serve.
func (u *uploads) receiving(view *projections.View, id events.EnvironmentID, account events.AccountID) (events.WorkID, error) {
	e, ok, err := projections.Environments{}.Environment(view, id)
	if err != nil || !ok || e.Region != u.agent.cfg.Region || account != e.Account && account != events.None {
		return "", err
	}
	orders, err := projections.WorkOrders{}.OfOperation(view, e.Operation) // that makes it: one or two
	if err != nil {
		return "", err
	}
	for _, o := range orders {
		if o.Kind == events.WorkReceive && o.Region == u.agent.cfg.Region && o.State.Open() && !o.Undo {
			return o.Work, nil
		}
	}
	return "", nil
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
	g, leave, err := u.enter(up)
	if err != nil {
		return u.internal(err)
	}
	defer leave()
	want := last - first + 1
	done, err := u.room(want)
	if err != nil {
		return u.internal(err)
	}
	defer done()
	f, err := u.open(up, g)
	if err == nil {
		defer f.Close()
	}
	var n int64
	if err == nil {
		n, err = io.Copy(gated{g, io.NewOffsetWriter(f, first)}, io.LimitReader(r.Body, want))
	}
	var pathError *os.PathError
	switch {
	case errors.Is(err, errComplete):
		return refuse(http.StatusConflict, "upload-complete", "disk %s has come in already", up.disk.Name)
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

// open opens the staging file of a disk that is not complete (errComplete).
func (u *uploads) open(up upload, g *gate) (*os.File, error) {
	g.RLock()
	defer g.RUnlock()
	if g.closed {
		return nil, errComplete
	}
	return u.stage(up)
}

func (u *uploads) stage(up upload) (*os.File, error) {
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

// finish closes the disk's gate: requests that come later, or are under way,
// write nothing any more.
func (u *uploads) finish(_ *http.Request, up upload) *problem {
	g, leave, err := u.enter(up)
	if err != nil {
		return u.internal(err)
	}
	defer leave()
	g.Lock()
	defer g.Unlock()
	if g.closed {
		u.agent.wake() // whoever closed it may not have come so far
		return nil
	}
	f, err := u.stage(up)
	if err == nil {
		err = f.Sync()
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err == nil {
		err = writeDurably(u.path(up.work, up.disk.Name)+".complete", nil)
		g.closed = u.complete(up.work, up.disk.Name) // perhaps also after an error
	}
	if err != nil {
		return u.internal(err)
	}
	u.agent.wake()
	return nil
}
