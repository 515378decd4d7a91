// Package host keeps a region's networks in a process of their own, which outlives the agent: connections through an edge go
// on while an agent ends, is killed, or is replaced by a newer one. Serve is that process; Substrate is the agent's end.
//
//	DIR/host.sock      the process serves the networks port there: HTTP with JSON, for this user only
//	DIR/host.sock.lock held while it does
//	DIR/host.log       what it says
package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/fault"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// Protocol is the version of what the two ends say to each other.
const Protocol = 1

// The calls: paths of POST requests, whose bodies are the JSON of a request type.
const (
	pathHello      = "/hello"
	pathStop       = "/stop"
	pathAlive      = "/alive" // answered when the process ends, if at all
	pathCan        = "/capabilities"
	pathList       = "/list"
	pathNetwork    = "/network"
	pathCounters   = "/counters"
	pathPools      = "/pools"
	pathApply      = "/apply"
	pathRemove     = "/remove"
	pathAttachment = "/attachment"
	pathPlug       = "/plug"
	pathUnplug     = "/unplug"
	pathPark       = "/park"
	pathRelease    = "/release"
)

type hello struct {
	Protocol int    `json:"protocol"`
	Version  string `json:"version"` // of the program
	PID      int    `json:"pid"`
}

type ofEnvironment struct {
	Epoch       int    `json:"epoch,omitempty"`
	Environment string `json:"environment"`
}

type ofPort struct {
	Epoch int             `json:"epoch"`
	Port  networks.PortID `json:"port"`
}

type counted struct {
	Ports []networks.Counters     `json:"ports"`
	Edges []networks.EdgeCounters `json:"edges"`
}

type nothing struct{}

// problem is the answer to a call that failed.
type problem struct {
	Code string `json:"code,omitempty"`
	Text string `json:"text"`
	Next string `json:"next,omitempty"`
}

// maxBody bounds what a call may carry, in bytes: far above the largest network that a graph can have.
const maxBody = 64 << 20

// handle makes the handler of one call.
func handle[In, Out any](mux *http.ServeMux, path string, do func(context.Context, In) (Out, error)) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&in); err != nil {
			answer(w, http.StatusBadRequest, problem{Text: err.Error()})
			return
		}
		out, err := do(r.Context(), in)
		if err != nil {
			p := problem{Text: err.Error()}
			if known, ok := errors.AsType[fault.Known](err); ok {
				p.Code, p.Text, p.Next = known.Tell()
			}
			answer(w, http.StatusConflict, p)
			return
		}
		answer(w, http.StatusOK, out)
	})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// Who has gone away needs no answer.
	_ = json.NewEncoder(w).Encode(body)
}

// Serve serves the substrate on the listener until somebody asks it to stop, or the context ends. It closes neither.
func Serve(ctx context.Context, l net.Listener, s networks.Substrate, program hello) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	mux := http.NewServeMux()
	handle(mux, pathHello, func(context.Context, nothing) (hello, error) { return program, nil })
	handle(mux, pathStop, func(context.Context, nothing) (nothing, error) { cancel(); return nothing{}, nil })
	handle(mux, pathAlive, func(asker context.Context, _ nothing) (nothing, error) {
		select {
		case <-asker.Done():
		case <-ctx.Done():
		}
		return nothing{}, nil
	})
	handle(mux, pathCan, func(ctx context.Context, _ nothing) (networks.Capabilities, error) { return s.Capabilities(ctx) })
	handle(mux, pathList, func(ctx context.Context, _ nothing) ([]networks.Network, error) { return s.List(ctx) })
	handle(mux, pathNetwork, func(ctx context.Context, in ofEnvironment) (networks.Network, error) {
		return s.Network(ctx, in.Environment)
	})
	handle(mux, pathCounters, func(ctx context.Context, _ nothing) (counted, error) {
		ports, edges, err := s.Counters(ctx)
		return counted{ports, edges}, err
	})
	handle(mux, pathPools, func(ctx context.Context, pools []networks.Pool) (nothing, error) {
		return nothing{}, s.SetPools(ctx, pools)
	})
	handle(mux, pathApply, func(ctx context.Context, n networks.Network) (nothing, error) { return nothing{}, s.Apply(ctx, n) })
	handle(mux, pathRemove, func(ctx context.Context, in ofEnvironment) (nothing, error) {
		return nothing{}, s.Remove(ctx, in.Epoch, in.Environment)
	})
	handle(mux, pathAttachment, func(ctx context.Context, in ofPort) (networks.Attachment, error) {
		return s.Attachment(ctx, in.Epoch, in.Port)
	})
	for path, do := range map[string]func(context.Context, int, networks.PortID) error{
		pathPlug: s.Plug, pathUnplug: s.Unplug, pathPark: s.Park, pathRelease: s.Release,
	} {
		handle(mux, path, func(ctx context.Context, in ofPort) (nothing, error) { return nothing{}, do(ctx, in.Epoch, in.Port) })
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		within, stop := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer stop()
		_ = server.Shutdown(within) // whoever still asks then is cut off by Close
		server.Close()
	}()
	err := server.Serve(l)
	cancel()
	<-done
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Patience for the process's answers: one that does not even say hello hangs.
const (
	helloPatience = 5 * time.Second
	callPatience  = time.Minute // plugging in waits for a machine, ten seconds at most
)

// ask sends one call over the client.
func ask[In, Out any](ctx context.Context, c *http.Client, path string, in In) (out Out, err error) {
	if path != pathAlive {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callPatience)
		defer cancel()
	}
	body, err := json.Marshal(in)
	if err != nil {
		return out, err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://host"+path, bytes.NewReader(body))
	if err != nil {
		return out, err
	}
	resp, err := c.Do(r)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var p problem
		if err := json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&p); err != nil || p.Code == "" {
			return out, fmt.Errorf("%s: the region's host answers %s %s", path, resp.Status, p.Text)
		}
		return out, &fault.Error[networks.Code]{Code: networks.Code(p.Code), Text: p.Text, Next: p.Next}
	}
	return out, json.NewDecoder(resp.Body).Decode(&out)
}
