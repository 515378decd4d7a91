package region

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/coder/websocket"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/fault"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/projections"
)

// registerConsoles serves what people see of a machine, and type into it. Who may
// read disks may:
//
//	GET /v1/environments/{environment}/machines/{machine}/console      WebSocket, the serial line, as binary messages
//	GET /v1/environments/{environment}/machines/{machine}/display      WebSocket, RFB 3.8 (RFC 6143), as binary messages
//	GET /v1/environments/{environment}/machines/{machine}/screenshot   PNG
func (g *guests) registerConsoles(mux *http.ServeMux) {
	const machine = "GET /v1/environments/{environment}/machines/{machine}/"
	mux.HandleFunc(machine+"console", g.stream(machines.Driver.Console))
	mux.HandleFunc(machine+"display", g.stream(machines.Driver.Display))
	mux.HandleFunc(machine+"screenshot", func(w http.ResponseWriter, r *http.Request) {
		id, p := g.asked(r)
		if p == nil {
			var png []byte
			var err error
			if png, err = g.machines.Screenshot(r.Context(), id); err == nil {
				w.Header().Set("Content-Type", "image/png")
				_, _ = w.Write(png) // who has gone away needs none
				return
			}
			p = unseen(err)
		}
		p.write(w, g.agent.cfg.Log)
	})
}

// asked finds the machine of a request, if the asker may see it.
func (g *guests) asked(r *http.Request) (machines.ID, *problem) {
	id := machines.ID{Environment: r.PathValue("environment"), Machine: r.PathValue("machine")}
	account, err := g.agent.cfg.Authorize(r, g.agent.feed, "")
	if err != nil {
		return id, unauthorized(err)
	}
	row, ok, err := g.row(events.EnvironmentID(id.Environment))
	switch {
	case err != nil:
		return id, unseen(err)
	case !ok || row.Region != g.agent.cfg.Region || account != row.Account && account != events.None:
		return id, refuse(http.StatusNotFound, "environment-unknown", "%s has no environment %.80q", g.agent.cfg.Region, id.Environment)
	case row.State != projections.EnvironmentCreated:
		return id, refuse(http.StatusConflict, "environment-not-ready", "environment %s is %s", id.Environment, row.State)
	}
	if err := g.available(r.Context()); err != nil {
		return id, unseen(err)
	}
	return id, nil
}

func unseen(err error) *problem {
	known, ok := errors.AsType[fault.Known](err)
	if !ok {
		return refuse(http.StatusInternalServerError, "internal", "the region's log says why")
	}
	code, text, next := known.Tell()
	p := refuse(http.StatusConflict, code, "%s", text)
	if p.Next = next; code == string(machines.MachineUnknown) {
		p.Next = "it is off, or suspended: start it first"
	}
	return p
}

// stream joins a WebSocket to a connection of the machine's until either ends.
func (g *guests) stream(open func(machines.Driver, context.Context, machines.ID) (io.ReadWriteCloser, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		id, p := g.asked(r)
		if p != nil {
			p.write(w, g.agent.cfg.Log)
			return
		}
		line, err := open(g.machines, r.Context(), id)
		if err != nil {
			unseen(err).write(w, g.agent.cfg.Log)
			return
		}
		defer line.Close()
		socket, err := websocket.Accept(w, r, nil)
		if err != nil {
			return // Accept has answered
		}
		defer socket.CloseNow()
		far := websocket.NetConn(r.Context(), socket, websocket.MessageBinary)
		go func() {
			_, _ = io.Copy(line, far)
			line.Close()
		}()
		_, _ = io.Copy(far, line)
		far.Close()
	}
}
