package journal_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

// errEnd ends a follow at the last event.
var errEnd = errors.New("end")

func benchJournal(b *testing.B) (*journal.JetStream, *nats.Conn) {
	conn := connect(b, startServer(b, b.TempDir()).ClientURL())
	o := options()
	o.MaxBytes, o.AckWait = 4<<30, 10*time.Second
	j, err := journal.Open(context.Background(), conn, o)
	if err != nil {
		b.Fatal(err)
	}
	return j, conn
}

func proposal(region string, n int, expect events.Head) journal.Proposal {
	command := events.CommandID("command-" + region + strconv.Itoa(n))
	return journal.Proposal{
		Aggregate: events.Aggregate{Account: events.None, Region: events.RegionID(region), Kind: events.KindRegion, ID: region},
		Expect:    expect, ID: events.DeriveID("acme", command, "event"), Time: time.Now(),
		Actor: events.Actor{Account: "acme", User: "ada"}, Command: events.CommandRef{ID: command, Digest: events.DigestOf([]byte(command))},
		Correlation: "0b7a9a52-6d1f-5d6c-9b0e-3f8a5f0a7f11", TraceParent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		Event: events.EpochStarted{Epoch: n, Agent: "agent", Transfer: "127.0.0.1:7081", HTTP: "127.0.0.1:7080"},
	}
}

// spread runs n calls over the writers and gives the time they took.
func spread(b *testing.B, n, writers int, call func(writer, i int) error) time.Duration {
	var group sync.WaitGroup
	start := time.Now()
	for w := range writers {
		group.Go(func() {
			for i := w; i < n; i += writers {
				if err := call(w, i); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	return time.Since(start)
}

// BenchmarkAppend compares checked appends with bare PublishMsg of messages
// with the same headers and payload, in the same run.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			j, conn := benchJournal(b)
			js, err := jetstream.New(conn)
			if err != nil {
				b.Fatal(err)
			}
			ctx := context.Background()
			heads := make([]events.Head, writers)
			appends := func(n int) time.Duration {
				return spread(b, n, writers, func(w, i int) error {
					r, err := j.Append(ctx, proposal("r"+strconv.Itoa(w), i, heads[w]))
					heads[w] = r.Head()
					return err
				})
			}
			appends(writers) // one event each, to copy the headers of
			stream, err := js.Stream(ctx, journal.StreamName)
			if err != nil {
				b.Fatal(err)
			}
			sample, err := stream.GetMsg(ctx, 1)
			if err != nil {
				b.Fatal(err)
			}
			delete(sample.Header, jetstream.ExpectedLastSubjSeqHeader)
			publishes := func(n int) time.Duration {
				return spread(b, n, writers, func(w, i int) error {
					_, err := js.PublishMsg(ctx, &nats.Msg{Subject: "tombolo.events._._.raw." + strconv.Itoa(w), Header: sample.Header, Data: sample.Data})
					return err
				})
			}
			b.ResetTimer()
			var checked, raw time.Duration
			for left := b.N; left > 0; left -= 500 { // in turns: the machine's mood hits both
				n := min(left, 500)
				checked += appends(n)
				raw += publishes(n)
			}
			b.ReportMetric(float64(b.N)/checked.Seconds(), "appends/s")
			b.ReportMetric(float64(b.N)/raw.Seconds(), "raw/s")
			b.ReportMetric(raw.Seconds()/checked.Seconds(), "of-raw")
		})
	}
}

// BenchmarkFollow compares Follow with nats.go's own consumption and plain JSON
// decoding of the payload.
func BenchmarkFollow(b *testing.B) {
	const total = 50000
	j, conn := benchJournal(b)
	ctx := context.Background()
	heads := make([]events.Head, 64)
	spread(b, total, 64, func(w, i int) error {
		r, err := j.Append(ctx, proposal("r"+strconv.Itoa(w), i, heads[w]))
		heads[w] = r.Head()
		return err
	})
	js, err := jetstream.New(conn)
	if err != nil {
		b.Fatal(err)
	}
	var followed, raw time.Duration
	for b.Loop() {
		start := time.Now()
		err := j.Follow(ctx, 0, func(r events.Record) error {
			if r.Sequence == total {
				return errEnd
			}
			return nil
		})
		if err != errEnd {
			b.Fatal(err)
		}
		followed += time.Since(start)

		start = time.Now()
		consumer, err := js.OrderedConsumer(ctx, journal.StreamName, jetstream.OrderedConsumerConfig{})
		if err != nil {
			b.Fatal(err)
		}
		done := make(chan error, 1)
		n := 0
		consuming, err := consumer.Consume(func(m jetstream.Msg) {
			var e events.EpochStarted
			err := json.Unmarshal(m.Data(), &e)
			if n++; n == total || err != nil {
				done <- err
			}
		}, jetstream.PullMaxMessages(1024))
		if err != nil {
			b.Fatal(err)
		}
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		raw += time.Since(start)
		consuming.Stop()
	}
	b.ReportMetric(float64(b.N*total)/followed.Seconds(), "follow/s")
	b.ReportMetric(float64(b.N*total)/raw.Seconds(), "raw/s")
}

// BenchmarkLoad measures the loads that commands make.
func BenchmarkLoad(b *testing.B) {
	j, _ := benchJournal(b)
	ctx := context.Background()
	var heads []events.Head
	a := proposal("sydney", 0, events.Head{}).Aggregate
	var head events.Head
	for i := range 200 {
		r, err := j.Append(ctx, proposal("sydney", i, head))
		if err != nil {
			b.Fatal(err)
		}
		head = r.Head()
		heads = append(heads, head)
	}
	b.Run("last", func(b *testing.B) {
		for b.Loop() {
			if _, err := j.Last(ctx, a); err != nil {
				b.Fatal(err)
			}
		}
	})
	for _, n := range []int{1, 8, 9, 20, 100} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			for b.Loop() {
				if got, err := j.Load(ctx, a, heads[199-n]); err != nil || len(got) != n {
					b.Fatal(len(got), err)
				}
			}
		})
	}
}
