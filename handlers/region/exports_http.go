package region

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/volumes"
	"github.com/tombolo-vdc/tombolo/projections"
)

// ExportRequest asks for an export: of an environment, or of the instance of a
// template's version, that this region has.
type ExportRequest struct {
	Environment events.EnvironmentID `json:"environment,omitempty"`
	Template    events.TemplateID    `json:"template,omitempty"`
	Version     int                  `json:"version,omitempty"`
	After       uint64               `json:"after,omitempty"` // position that the region must have seen
}

// ExportAnswer is what can be read, until it expires.
type ExportAnswer struct {
	ID          string               `json:"id"`
	Region      events.RegionID      `json:"region"`
	Environment events.EnvironmentID `json:"environment,omitempty"`
	Template    events.TemplateID    `json:"template,omitempty"`
	Version     int                  `json:"version,omitempty"`
	Taken       time.Time            `json:"taken_at"`
	Until       time.Time            `json:"expires_at"` // each reading postpones it
	Graph       graph.Graph          `json:"graph"`
	Disks       []ExportedDisk       `json:"disks"`
}

// ExportedDisk is one disk of an export.
type ExportedDisk struct {
	Disk   string        `json:"disk"`  // "<node>/<item>"
	Bytes  int64         `json:"bytes"` // as the machine sees it
	Digest events.Digest `json:"digest"`
	Path   string        `json:"path"` // GET gives the bytes; PATH/extents which ranges hold any
}

// DiskExtents are the ranges of a disk outside of which all is zeros.
type DiskExtents struct {
	Disk    string   `json:"disk"`
	Bytes   int64    `json:"bytes"`
	Extents []Extent `json:"extents"`
}

// Extent is a range of bytes.
type Extent struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// register serves:
//
//	POST   /v1/exports                                   ExportRequest → 201, ExportAnswer
//	GET    /v1/exports/{export}                          ExportAnswer
//	GET    /v1/exports/{export}/{node}/{disk}            the bytes, with Range (RFC 9110, 14)
//	GET    /v1/exports/{export}/{node}/{disk}/extents    DiskExtents
//	DELETE /v1/exports/{export}                          ends it before it expires
func (x *exports) register(mux *http.ServeMux) {
	mux.HandleFunc("POST /v1/exports", x.handle(x.make))
	mux.HandleFunc("GET /v1/exports/{export}", x.handle(x.reading(func(w http.ResponseWriter, _ *http.Request, e *export) *problem {
		return x.write(w, http.StatusOK, x.answer(e))
	})))
	mux.HandleFunc("GET /v1/exports/{export}/{node}/{disk}", x.handle(x.reading(x.bytes)))
	mux.HandleFunc("GET /v1/exports/{export}/{node}/{disk}/extents", x.handle(x.reading(x.extents)))
	mux.HandleFunc("DELETE /v1/exports/{export}", x.handle(x.end))
}

// handle finds out who asks, and answers with what went wrong.
func (x *exports) handle(next func(http.ResponseWriter, *http.Request, events.AccountID) *problem) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		account, err := x.agent.cfg.Authorize(r, x.agent.feed, "")
		var p *problem
		if err != nil {
			p = unauthorized(err)
		} else {
			p = next(w, r, account)
		}
		if p != nil {
			p.write(w, x.agent.cfg.Log)
		}
	}
}

func (x *exports) write(w http.ResponseWriter, status int, body any) *problem {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		x.agent.cfg.Log.Debug("an export's answer was not taken", "error", err)
	}
	return nil
}

// answer is what people are told of an export.
func (x *exports) answer(e *export) ExportAnswer {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := ExportAnswer{ID: e.ID, Region: e.Region, Environment: e.Environment, Template: e.Template, Version: e.Version,
		Taken: e.Taken, Until: e.Until, Graph: e.Graph, Disks: []ExportedDisk{}}
	for _, d := range e.Graph.Disks() {
		out.Disks = append(out.Disks, ExportedDisk{Disk: d.Name(), Bytes: d.Size, Digest: d.Digest,
			Path: "/v1/exports/" + e.ID + "/" + url.PathEscape(d.Node) + "/" + url.PathEscape(d.Item.Name)})
	}
	return out
}

// maxExportRequest bounds the body of a request, in bytes.
const maxExportRequest = 4096

func (x *exports) make(w http.ResponseWriter, r *http.Request, account events.AccountID) *problem {
	var asked ExportRequest
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxExportRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(&asked); err != nil {
		return refuse(http.StatusBadRequest, "bad-request", "the body is not an export's request: %v", err)
	}
	if (asked.Environment == "") == (asked.Template == "") {
		return refuse(http.StatusBadRequest, "bad-request", "name an environment, or a template and its version")
	}
	if asked.After > 0 {
		ctx, cancel := context.WithTimeout(r.Context(), orderPatience)
		defer cancel()
		if err := x.agent.feed.WaitFor(ctx, asked.After); err != nil {
			return refuse(http.StatusServiceUnavailable, "behind", "%s has not heard of position %d yet", x.agent.cfg.Region, asked.After)
		}
	}
	var e *export
	var p *problem
	var err error
	if asked.Environment != "" {
		e, p, err = x.ofEnvironment(r.Context(), account, asked.Environment)
	} else {
		e, p, err = x.ofInstance(r.Context(), account, asked.Template, asked.Version)
	}
	switch {
	case p != nil:
		return p
	case err != nil:
		return x.failed(err)
	}
	w.Header().Set("Location", "/v1/exports/"+e.ID)
	return x.write(w, http.StatusCreated, x.answer(e))
}

// ofEnvironment exports the environment's disks as they are now, with the values
// that it is reached by here.
func (x *exports) ofEnvironment(ctx context.Context, account events.AccountID, id events.EnvironmentID) (*export, *problem, error) {
	view, err := x.agent.feed.Now("environments")
	if err != nil {
		return nil, nil, err
	}
	defer view.Close()
	row, ok, err := projections.Environments{}.Environment(view, id)
	if err != nil {
		return nil, nil, err
	}
	if !ok || row.Region != x.agent.cfg.Region || account != row.Account && account != events.None {
		return nil, refuse(http.StatusNotFound, "environment-unknown", "%s has no environment %.80q", x.agent.cfg.Region, string(id)), nil
	}
	if row.State != projections.EnvironmentCreated {
		p := refuse(http.StatusConflict, "environment-not-ready", "environment %s is %s", id, row.State)
		p.Next = "only one that is created has disks to read"
		return nil, p, nil
	}
	values, _, err := projections.Environments{}.Map(view, id)
	if err != nil {
		return nil, nil, err
	}
	g, err := x.agent.environmentGraph(id)
	if os.IsNotExist(err) {
		return nil, refuse(http.StatusConflict, "environment-not-ready", "environment %s is not there yet", id), nil
	}
	if err != nil {
		return nil, nil, err
	}
	for _, s := range values {
		setValue(&g, s.Resource, s.To)
	}
	e, err := x.take(ctx, export{Account: row.Account, Environment: id, Graph: g}, x.fixEnvironment(id))
	return e, nil, err
}

func setValue(g *graph.Graph, resource, value string) {
	for i := range g.Nodes {
		for k := range g.Nodes[i].Resources {
			if g.Nodes[i].Resources[k].ID == resource {
				g.Nodes[i].Resources[k].Value = value
			}
		}
	}
}

// ofInstance exports the version's disks as this region has verified them.
func (x *exports) ofInstance(ctx context.Context, account events.AccountID, number events.TemplateID, version int) (*export, *problem, error) {
	view, err := x.agent.feed.Now("catalogue")
	if err != nil {
		return nil, nil, err
	}
	defer view.Close()
	t, ok, err := projections.Catalogue{}.Numbered(view, number)
	if err != nil {
		return nil, nil, err
	}
	if !ok || account != t.Account && account != events.None {
		return nil, refuse(http.StatusNotFound, "template-unknown", "there is no template %.80q", string(number)), nil
	}
	instances, err := projections.Catalogue{}.Instances(view, t.Account, number)
	if err != nil {
		return nil, nil, err
	}
	for _, i := range instances {
		if i.Region != x.agent.cfg.Region || i.Version != version || !i.Verified || i.State == projections.InstanceRemoved {
			continue
		}
		m, _, err := x.agent.manifest(ctx, slot(number, version), i.Digest)
		if err != nil {
			return nil, nil, err
		}
		e, err := x.take(ctx, export{Account: t.Account, Template: number, Version: version, Graph: m.Graph}, x.fixInstance)
		return e, nil, err
	}
	p := refuse(http.StatusNotFound, "instance-not-here", "%s holds no verified copy of %s@%d", x.agent.cfg.Region, number, version)
	p.Next = "tombolo where " + string(number) + " says which regions do"
	return nil, p, nil
}

// failed is what a stranger may know of an error.
func (x *exports) failed(err error) *problem {
	var known *permanent
	var p *problem
	switch {
	case errors.As(err, &known):
		p = refuse(http.StatusConflict, known.cause.Code, "%s", known.cause.Text)
		p.Next = known.cause.Next
	case volumes.CodeOf(err) == volumes.VolumeBusy:
		p = refuse(http.StatusConflict, "environment-busy", "the environment is being saved or exported")
		p.Next = "try again in a moment"
	case chunks.CodeOf(err) == chunks.StoreFull, volumes.CodeOf(err) == volumes.VolumeFull, errors.Is(err, syscall.ENOSPC):
		p = refuse(http.StatusInsufficientStorage, "store-full", "the region's disk is full")
	default:
		x.agent.cfg.Log.Error("an export has failed", "error", err)
		p = refuse(http.StatusInternalServerError, "internal", "the region could not read it; its log says why")
	}
	return p
}

// reading finds the export that is asked for and keeps it meanwhile.
func (x *exports) reading(next func(http.ResponseWriter, *http.Request, *export) *problem) func(http.ResponseWriter, *http.Request, events.AccountID) *problem {
	return func(w http.ResponseWriter, r *http.Request, account events.AccountID) *problem {
		e, done, err := x.begin(r.Context(), r.PathValue("export"), account)
		switch {
		case err != nil:
			return x.failed(err)
		case e == nil:
			return exportUnknown(r)
		}
		defer done()
		return next(w, r, e)
	}
}

func exportUnknown(r *http.Request) *problem {
	p := refuse(http.StatusNotFound, "export-unknown", "there is no export %.80q; an export that nobody reads expires", r.PathValue("export"))
	p.Next = "make a new one: POST /v1/exports"
	return p
}

func (x *exports) end(w http.ResponseWriter, r *http.Request, account events.AccountID) *problem {
	e, done, err := x.begin(r.Context(), r.PathValue("export"), account)
	switch {
	case err != nil:
		return x.failed(err)
	case e == nil:
		return exportUnknown(r)
	}
	done()
	if err := x.drop(r.Context(), e.ID); err != nil {
		return x.failed(err)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// find opens the disk that is asked for.
func (x *exports) find(r *http.Request, e *export) (string, *chunks.Disk, *problem) {
	name := r.PathValue("node") + "/" + r.PathValue("disk")
	d, err := x.disk(r.Context(), e, name)
	switch {
	case err != nil:
		return name, nil, x.failed(err)
	case d == nil:
		return name, nil, refuse(http.StatusNotFound, "disk-unknown", "the export has no disk %.200q", name)
	}
	return name, d, nil
}

func (x *exports) bytes(w http.ResponseWriter, r *http.Request, e *export) *problem {
	name, d, p := x.find(r, e)
	if p != nil {
		return p
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", `"`+string(d.Index().Digest())+`"`)
	from := &told{x: x, disk: name, from: d}
	http.ServeContent(w, r, "", time.Time{}, io.NewSectionReader(from, 0, d.Size()))
	return nil
}

// told logs why a disk cannot be read: the answer has begun by then, and can
// only end too early.
type told struct {
	x    *exports
	disk string
	from io.ReaderAt
}

func (t *told) ReadAt(p []byte, off int64) (int, error) {
	n, err := t.from.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		t.x.agent.cfg.Log.Error("an exported disk cannot be read", "disk", t.disk, "offset", off, "error", err)
	}
	return n, err
}

func (x *exports) extents(w http.ResponseWriter, r *http.Request, e *export) *problem {
	name, d, p := x.find(r, e)
	if p != nil {
		return p
	}
	out := DiskExtents{Disk: name, Bytes: d.Size(), Extents: []Extent{}}
	for run := range d.Index().Runs() {
		if run.IDs == nil {
			continue
		}
		first := run.First * chunks.BlockSize
		last := min((run.First+run.Count)*chunks.BlockSize, d.Size())
		out.Extents = append(out.Extents, Extent{first, last - first})
	}
	return x.write(w, http.StatusOK, out)
}
