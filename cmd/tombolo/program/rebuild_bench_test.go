package program_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"reflect"
	"runtime/metrics"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/projections"
)

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// written is a journal over a real stream that holds n events of an installation.
func written(b *testing.B, n int) (*journal.JetStream, jetstream.JetStream) {
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: b.TempDir(), NoSigs: true, NoLog: true})
	check(b, err)
	s.Start()
	b.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(10 * time.Second) {
		b.Fatal("the server does not answer")
	}
	conn, err := nats.Connect(s.ClientURL())
	check(b, err)
	b.Cleanup(conn.Close)
	j, err := journal.Open(b.Context(), conn, journal.Options{Registry: events.NewRegistry(), MaxBytes: 16 << 30, AckWait: 30 * time.Second})
	check(b, err)
	js, err := jetstream.New(conn)
	check(b, err)

	const writers = 64 // each writes the events of its aggregates in order
	var group sync.WaitGroup
	var queues [writers]chan fact
	for i := range queues {
		queues[i] = make(chan fact, 64)
		group.Go(func() {
			heads := map[events.Aggregate]events.Head{}
			for f := range queues[i] {
				command := events.CommandID(events.DeriveID("acme", events.CommandID(fmt.Sprint(i, len(heads))), string(heads[f.at].Digest)))
				proposal := journal.Proposal{Aggregate: f.at, Expect: heads[f.at], ID: events.DeriveID("acme", command, "event"), Time: time.Now(),
					Actor: events.Actor{Account: "acme", User: "ann"}, Command: events.CommandRef{ID: command, Digest: events.DigestOf([]byte(command))},
					Correlation: string(command), TraceParent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", Event: f.event}
				if !f.person {
					proposal.Causation = string(command)
				}
				r, err := j.Append(context.Background(), proposal)
				if err != nil {
					b.Error(err)
					return
				}
				heads[f.at] = r.Head()
			}
		})
	}
	seed, aggregates := maphash.MakeSeed(), map[events.Aggregate]bool{}
	for f := range installation(1) {
		aggregates[f.at] = true
		queues[maphash.Comparable(seed, f.at)%writers] <- f
		if n--; n == 0 {
			break
		}
	}
	for _, q := range queues {
		close(q)
	}
	group.Wait()
	b.Logf("%d aggregates", len(aggregates))
	return j, js
}

// consumed reads the stream with nats.go alone and decodes each payload, and
// gives the events per second.
func consumed(b *testing.B, js jetstream.JetStream, n int) float64 {
	types := map[string]reflect.Type{}
	for _, d := range events.NewRegistry().Definitions() {
		types[string(d.Type)] = reflect.TypeOf(d.Zero)
	}
	begun := time.Now()
	consumer, err := js.OrderedConsumer(b.Context(), journal.StreamName, jetstream.OrderedConsumerConfig{})
	check(b, err)
	done, seen := make(chan error, 1), 0
	consuming, err := consumer.Consume(func(m jetstream.Msg) {
		err := json.Unmarshal(m.Data(), reflect.New(types[m.Headers().Get("ce-type")]).Interface())
		if seen++; seen == n || err != nil {
			select {
			case done <- err:
			default:
			}
		}
	}, jetstream.PullMaxMessages(1024))
	check(b, err)
	check(b, <-done)
	took := time.Since(begun)
	consuming.Stop()
	return float64(n) / took.Seconds()
}

// processor gives the processor time that the process has used.
func processor(b *testing.B) time.Duration {
	var u unix.Rusage
	check(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

var errRead = errors.New("all was read")

// followed reads the stream through the journal, and gives the events per second.
func followed(b *testing.B, j journal.Journal, n int) float64 {
	begun := time.Now()
	err := j.Follow(b.Context(), 0, func(r events.Record) error {
		if r.Sequence == uint64(n) {
			return errRead
		}
		return nil
	})
	if err != errRead {
		b.Fatal(err)
	}
	return float64(n) / time.Since(begun).Seconds()
}

// rebuild folds the whole set into a new store, and gives the events per second.
func rebuild(b *testing.B, j projections.Follower, n int) float64 {
	store, err := projections.Open(b.TempDir(), projections.Options{})
	check(b, err)
	begun := time.Now()
	feed, err := store.Feed(projections.All()...)
	check(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- feed.Run(ctx, j) }()
	check(b, feed.WaitFor(ctx, uint64(n)))
	took := time.Since(begun)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		b.Fatal(err)
	}
	check(b, store.Close())
	return float64(n) / took.Seconds()
}

// memoryBound is the most that the heap may hold while everything is rebuilt, in
// MiB: the bound that projections.Options states (256), of which the memtables
// are elsewhere, the embedded server, and as much again that is garbage.
const memoryBound = 560

// peak samples the memory of the process until stop is called.
func peak() (stop func() float64) {
	done, result := make(chan struct{}), make(chan float64)
	go func() {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		most := uint64(0)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			metrics.Read(sample)
			most = max(most, sample[0].Value.Uint64())
			select {
			case <-tick.C:
			case <-done:
				result <- float64(most) / (1 << 20)
				return
			}
		}
	}()
	return func() float64 { close(done); return <-result }
}

// BenchmarkRebuild folds the whole set of read models from a journal of
// 1,000,000 events (100,000 with -short) in a real stream, and compares with
// nats.go alone that consumes and decodes the same stream in the same run.
func BenchmarkRebuild(b *testing.B) {
	n := 1_000_000
	if testing.Short() {
		n /= 10
	}
	j, js := written(b, n)
	var raw, follows, rebuilt, memory float64
	var rawCPU, followCPU, rebuildCPU time.Duration
	for b.Loop() {
		used := processor(b)
		raw += consumed(b, js, n)
		rawCPU += processor(b) - used
		used = processor(b)
		follows += followed(b, j, n)
		followCPU += processor(b) - used
		used = processor(b)
		high := peak()
		rebuilt += rebuild(b, j, n)
		memory = max(memory, high())
		rebuildCPU += processor(b) - used
	}
	if memory > memoryBound {
		b.Errorf("the heap held %.0f MiB; %d are the bound", memory, memoryBound)
	}
	runs := float64(b.N)
	b.ReportMetric(raw/runs, "nats.go/s")
	b.ReportMetric(follows/runs, "follow/s")
	b.ReportMetric(rebuilt/runs, "rebuild/s")
	b.ReportMetric(rebuilt/raw, "of-nats.go")
	b.ReportMetric(memory, "peak-heap-MiB")
	// Of all threads, the server's too: what other work on the machine leaves as it is.
	each := func(d time.Duration) float64 { return float64(d.Microseconds()) / runs / float64(n) }
	b.ReportMetric(each(rawCPU), "nats.go-cpu-us")
	b.ReportMetric(each(followCPU), "follow-cpu-us")
	b.ReportMetric(each(rebuildCPU), "rebuild-cpu-us")
}
