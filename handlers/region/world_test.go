package region

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/projections"
)

// followed is a journal in memory that an agent's projections follow.
type followed struct {
	*journal.Memory
	t    *testing.T
	feed *projections.Feed
}

// follow gives the agent a journal and has its projections follow it.
func follow(t *testing.T, a *Agent) followed {
	t.Helper()
	j := journal.NewMemory(events.NewRegistry(), time.Now)
	reads, err := projections.Open(filepath.Join(a.cfg.Dir, "reads"), projections.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reads.Close() })
	if a.feed, err = reads.Feed(projections.All()...); err != nil {
		t.Fatal(err)
	}
	a.cfg.Journal = j
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.feed.Run(ctx, j) }()
	t.Cleanup(func() { cancel(); <-ended })
	return followed{j, t, a.feed}
}

// put appends an event, and returns once the agent's projections have it.
func (j followed) put(of events.Aggregate, expect events.Head, e events.Event) events.Record {
	j.t.Helper()
	command := events.CommandID(events.DeriveID("acme", events.CommandID(of.ID), string(e.EventType())))
	r, err := j.Append(j.t.Context(), journal.Proposal{Aggregate: of, Expect: expect, ID: events.DeriveID("acme", command, "event"), Time: time.Now(),
		Actor: events.Actor{Account: "acme", User: "ann"}, Command: events.CommandRef{ID: command, Digest: events.DigestOf([]byte(command))},
		Correlation: string(command), Event: e})
	if err == nil {
		err = j.feed.WaitFor(j.t.Context(), r.Sequence)
	}
	if err != nil {
		j.t.Fatal(err)
	}
	return r
}
