package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/tombolo-vdc/tombolo/aggregates/region"
	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/bus"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/testenv/process"
	"github.com/tombolo-vdc/tombolo/testenv/report"
)

const (
	warmAggregates = 10_000
	commandWait    = 20 * time.Second
)

// load is clients that do one thing after the other.
type load struct {
	rate float64         // a second
	took []time.Duration // sorted
}

func (l load) p99() time.Duration {
	if len(l.took) == 0 {
		return 0
	}
	return l.took[(len(l.took)-1)*99/100]
}

// press has as many clients as there are functions do their thing for a while.
func press(d time.Duration, clients []func() error) (load, error) {
	var all load
	var mu sync.Mutex
	var wait sync.WaitGroup
	var failed error
	began := time.Now()
	end := began.Add(d)
	for _, once := range clients {
		wait.Go(func() {
			var took []time.Duration
			for {
				start := time.Now()
				if start.After(end) {
					break
				}
				if err := once(); err != nil {
					mu.Lock()
					failed = errors.Join(failed, err)
					mu.Unlock()
					return
				}
				took = append(took, time.Since(start))
			}
			mu.Lock()
			defer mu.Unlock()
			all.took = append(all.took, took...)
		})
	}
	wait.Wait()
	slices.Sort(all.took)
	all.rate = float64(len(all.took)) / time.Since(began).Seconds()
	return all, failed
}

// warm is one of the warm aggregates: a region that nobody runs, which an administrator gives to one agent and another
// in turn. Of all commands it is the one whose aggregate is made by a single command, too.
type warm struct {
	region string
	turn   atomic.Uint64
}

// commanding is the real program with its warm aggregates, and the raw server beside it.
type commanding struct {
	*bench
	user    contexts.Context
	regions []*warm
	next    atomic.Uint64
	event   *nats.Msg // one of the program's own, as it is stored
}

// commandRows measures commands against raw checked publishes.
func (b *bench) commandRows(ctx context.Context) (err error) {
	dir := filepath.Join(b.dir, "commands")
	c := &commanding{bench: b}
	defer os.RemoveAll(dir)
	if err := c.prepare(ctx, dir); err != nil {
		return err
	}
	raw, at, err := b.startPart("", partRaw, part{Dir: filepath.Join(b.dir, "raw")})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, raw.End(10*time.Second)) }()
	t := &report.Table{Name: "commands", Head: []string{"program", "clients", "raw publishes/s", "NATS commands/s", "ratio", "raw p99 ms", "NATS p99 ms", "ratio p99", "HTTP commands/s", "HTTP p99 ms"}}
	if err := errors.Join(c.rows(ctx, t, at.Address, "server", dir, process.Control), c.rows(ctx, t, at.Address, "up", dir, process.Up)); err != nil {
		return err
	}
	t.Note("`region.takeover` over %d warm regions (each was commanded once since the start), each command one event of %d bytes (headers %d, payload %d), synced to the disk before its answer. `server` is the control plane, as it runs where the regions' agents are on hosts of their own; `up` has three agents in the same process, each of which keeps read models of its own, on the same processors. Raw: the same bytes, with the expected last sequence of their subject, over TCP to a nats-server of its own process that syncs every message to the same disk. Medians of %d alternating rounds of %s. The goals are about `server`.",
		warmAggregates, len(c.event.Data)+headerBytes(c.event.Header), headerBytes(c.event.Header), len(c.event.Data), b.rounds, b.roundTime)
	b.tables = append(b.tables, t)
	return nil
}

// rows measures one way to run the program.
func (c *commanding) rows(ctx context.Context, t *report.Table, rawURL, name, dir string, start func(ctx context.Context, binary, dir string, flags ...string) (*process.Server, error)) error {
	server, err := start(ctx, c.binary, dir)
	if err != nil {
		return err
	}
	c.user, err = server.Context("")
	if err == nil {
		err = c.warmUp()
	}
	for _, clients := range []int{1, 16, 64} {
		if err == nil {
			err = c.row(ctx, t, name, rawURL, clients)
		}
	}
	_, derr := server.Down()
	return errors.Join(err, derr)
}

// warmUp commands every region once, so that its state is in memory.
func (c *commanding) warmUp() error {
	clients, end, err := c.natsClients(64)
	defer end()
	if err != nil {
		return err
	}
	var group errgroup.Group
	for _, once := range clients {
		group.Go(func() error {
			for range (warmAggregates + len(clients) - 1) / len(clients) {
				if err := once(); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

func headerBytes(h nats.Header) (n int) {
	for k, values := range h {
		for _, v := range values {
			n += len(k) + len(v) + 4
		}
	}
	return n + 12
}

// prepare makes the regions through the real program, which does not sync meanwhile, and reads an event as stored.
func (c *commanding) prepare(ctx context.Context, dir string) (err error) {
	// In memory where there is such a folder: making them is not what is measured.
	fast, err := os.MkdirTemp(memoryFolder(), "tombolo-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(fast)) }()
	s, err := process.Up(ctx, c.binary, filepath.Join(fast, "data"), "--sync", "lazy")
	if err != nil {
		return err
	}
	if c.user, err = s.Context(""); err != nil {
		return err
	}
	began := time.Now()
	err = c.addRegions(ctx)
	_, derr := s.Down()
	if err = errors.Join(err, derr); err != nil {
		return err
	}
	c.say("%d regions made in %s", warmAggregates, time.Since(began).Round(time.Second))
	if err := run(ctx, "cp", "-r", filepath.Join(fast, "data"), dir); err != nil {
		return err
	}
	if c.event, err = lastEvent(ctx, filepath.Join(dir, "bus")); err != nil {
		return err
	}
	return settle(ctx, dir)
}

// memoryFolder is a file system in memory, or the system's folder for temporary files.
func memoryFolder() string {
	const shm = "/dev/shm"
	if info, err := os.Stat(shm); err == nil && info.IsDir() {
		return shm
	}
	return os.TempDir()
}

// addRegions makes the aggregates by the command that makes them.
func (c *commanding) addRegions(ctx context.Context) error {
	const makers = 32
	conn, err := bus.Connect(c.user.NATS, c.user.Seed)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := commands.NewClient(conn)
	for i := range warmAggregates {
		c.regions = append(c.regions, &warm{region: fmt.Sprintf("place-%d", i)})
	}
	var next atomic.Int64
	failed := make(chan error, makers)
	for range makers {
		go func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= warmAggregates {
					failed <- nil
					return
				}
				add := region.Add{Region: events.RegionID(c.regions[i].region), Profile: events.RegionProfile{Name: fmt.Sprintf("Place %d", i)}}
				ctx, cancel := context.WithTimeout(ctx, commandWait)
				_, err := client.Do(ctx, events.None, events.KindRegion, "add", "", add)
				if err == nil {
					_, body := c.turnOf(c.regions[i])
					_, err = client.Do(ctx, events.None, events.KindRegion, "takeover", "", body)
				}
				cancel()
				if err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	for range makers {
		err = errors.Join(err, <-failed)
	}
	return err
}

// lastEvent reads the last event of a data directory's journal, as it is stored.
func lastEvent(ctx context.Context, dir string) (_ *nats.Msg, err error) {
	server, err := bus.Embedded(bus.Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	defer func() { err = closed(err, server) }()
	conn, err := server.Connect()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, err
	}
	stream, err := js.Stream(ctx, journal.StreamName)
	if err != nil {
		return nil, err
	}
	m, err := stream.GetMsg(ctx, stream.CachedInfo().State.LastSeq)
	if err != nil {
		return nil, err
	}
	return &nats.Msg{Subject: m.Subject, Header: m.Header, Data: m.Data}, nil
}

// row measures one number of clients: raw, NATS and HTTP take turns.
func (c *commanding) row(ctx context.Context, t *report.Table, name, rawURL string, clients int) error {
	raw, closeRaw, err := c.rawClients(ctx, rawURL, name, clients)
	if err != nil {
		return err
	}
	defer closeRaw()
	viaNATS, closeNATS, err := c.natsClients(clients)
	if err != nil {
		return err
	}
	defer closeNATS()
	viaHTTP := c.httpClients(ctx, clients)
	// Everything is warm before it counts.
	for _, e := range [][]func() error{raw, viaNATS, viaHTTP} {
		if _, err := press(c.roundTime/2, e); err != nil {
			return err
		}
	}
	var rate, p99 [3][]float64
	var ratio, ratio99 []float64
	for range c.rounds {
		var got [3]load
		for i, e := range [][]func() error{raw, viaNATS, viaHTTP} {
			if got[i], err = press(c.roundTime, e); err != nil {
				return err
			}
			rate[i] = append(rate[i], got[i].rate)
			p99[i] = append(p99[i], got[i].p99().Seconds()*1000)
		}
		ratio = append(ratio, got[1].rate/got[0].rate)
		ratio99 = append(ratio99, got[1].p99().Seconds()/got[0].p99().Seconds())
	}
	t.Add(name, clients, median(rate[0]), median(rate[1]), median(ratio), median(p99[0]), median(p99[1]), median(ratio99), median(rate[2]), median(p99[2]))
	if name != "server" {
		return nil
	}
	c.goals.AtLeast(fmt.Sprintf("durable NATS commands / raw publishes, %d clients", clients), 0.8, median(ratio), "")
	c.goals.AtMost(fmt.Sprintf("accept p99 / raw p99, %d clients", clients), 2, median(ratio99), "")
	return nil
}

// rawClients publish the bytes of an event to subjects of their own, with the sequence that each expects.
func (c *commanding) rawClients(ctx context.Context, url, name string, clients int) (out []func() error, end func(), err error) {
	var conns []*nats.Conn
	end = func() {
		for _, conn := range conns {
			conn.Close()
		}
	}
	for worker := range clients {
		conn, err := nats.Connect(url)
		if err != nil {
			return nil, end, err
		}
		conns = append(conns, conn)
		js, err := jetstream.New(conn)
		if err != nil {
			return nil, end, err
		}
		if worker == 0 {
			if _, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "RAW", Subjects: []string{"tombolo.events.>"}, Discard: jetstream.DiscardNew, DenyDelete: true, DenyPurge: true}); err != nil {
				return nil, end, err
			}
		}
		last := make([]uint64, warmAggregates/64)
		n := 0
		out = append(out, func() error {
			subject := n % len(last)
			n++
			m := &nats.Msg{Subject: fmt.Sprintf("%s-%s-%d-%d-%d", c.event.Subject, name, clients, worker, subject), Header: nats.Header{}, Data: c.event.Data}
			for k, v := range c.event.Header {
				m.Header[k] = v
			}
			m.Header.Set(jetstream.ExpectedStreamHeader, "RAW")
			m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, fmt.Sprint(last[subject]))
			ack, err := js.PublishMsg(ctx, m)
			if err != nil {
				return fmt.Errorf("raw publish: %w", err)
			}
			last[subject] = ack.Sequence
			return nil
		})
	}
	return out, end, nil
}

// turnOf gives what changes a region next.
func (c *commanding) turnOf(w *warm) (*warm, region.Takeover) {
	return w, region.Takeover{Region: events.RegionID(w.region), Agent: fmt.Sprintf("0a9f3c6e-7d41-4b2a-9c55-%012d", w.turn.Add(1)%2)}
}

// turn gives a region, in turn over all, and what changes it.
func (c *commanding) turn() (*warm, region.Takeover) {
	return c.turnOf(c.regions[c.next.Add(1)%warmAggregates])
}

// natsClients command as any client of NATS does: a request on a subject.
func (c *commanding) natsClients(clients int) (out []func() error, end func(), err error) {
	var conns []*bus.Conn
	end = func() {
		for _, conn := range conns {
			conn.Close()
		}
	}
	for range clients {
		conn, err := bus.Connect(c.user.NATS, c.user.Seed)
		if err != nil {
			return nil, end, err
		}
		conns = append(conns, conn)
		out = append(out, func() error {
			_, takeover := c.turn()
			body, err := json.Marshal(takeover)
			if err != nil {
				return err
			}
			reply, err := conn.Request(commands.CommandPrefix+events.None+".region.takeover", body, commandWait)
			if err != nil {
				return fmt.Errorf("command: %w", err)
			}
			if reply.Header.Get("Nats-Service-Error") != "" || !bytes.Contains(reply.Data, []byte(`"event"`)) {
				return fmt.Errorf("command %s: %s", body, reply.Data)
			}
			return nil
		})
	}
	return out, end, nil
}

// httpClients send the same commands by HTTP.
func (c *commanding) httpClients(ctx context.Context, clients int) (out []func() error) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}, Timeout: commandWait}
	for range clients {
		out = append(out, func() error {
			w, takeover := c.turn()
			body, err := json.Marshal(map[string]string{"agent": takeover.Agent})
			if err != nil {
				return err
			}
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, c.user.HTTP+"/v1/regions/"+w.region+"/takeover", bytes.NewReader(body))
			if err != nil {
				return err
			}
			r.Header.Set("Authorization", "Bearer "+c.user.Token)
			r.Header.Set("Content-Type", "application/json")
			resp, err := client.Do(r)
			if err != nil {
				return err
			}
			answer, err := io.ReadAll(resp.Body)
			if err = errors.Join(err, resp.Body.Close()); err != nil {
				return err
			}
			if resp.StatusCode >= 300 {
				return fmt.Errorf("HTTP command: %s: %s", resp.Status, answer)
			}
			return nil
		})
	}
	return out
}
