package region

import (
	"context"
	"slices"
	"sync"
	"testing"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
)

// slowTelling executes reports, and the journal tells of them later.
type slowTelling struct {
	mu   sync.Mutex
	tip  uint64
	said []string

	heard chan string
}

func (s *slowTelling) Command(_ context.Context, operation events.OperationID, _ events.AccountID, _ events.Kind, verb string, _ events.CommandID, _ any) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.said = append(s.said, verb+" of "+string(operation))
	s.tip++
	s.heard <- verb
	return s.tip, nil
}

// TestReportedIsNotBegunAgain: an order whose end was reported is still open for
// projections that lag; it is left alone until they have come so far.
func TestReportedIsNotBegunAgain(t *testing.T) {
	a := storeOf(t, t.TempDir())
	defer func() { closeStore(t, a) }()
	j := follow(t, a)
	id := events.WorkID(events.DeriveID("acme", "command", "work"))
	of := work.Ref{Region: "sydney", Work: id}.Aggregate("acme")
	ordered := j.put(of, events.Head{}, events.WorkOrdered{Kind: events.WorkRemove, Operation: events.OperationID(id), Order: events.Order{Template: "73291467", Version: 1, Manifest: events.DigestOf(nil)}})
	told := &slowTelling{tip: ordered.Sequence, heard: make(chan string, 8)}
	a.cfg.Commander, a.cfg.Slots = told, 4
	a.jobs, a.ready, a.kinds = map[events.WorkID]*running{}, newReadyDisks(a.cache), kinds()
	active, done := 0, make(chan error, 4)
	look := func() {
		t.Helper()
		if _, err := a.reconcile(t.Context(), &active, done); err != nil {
			t.Fatal(err)
		}
	}
	look()
	for range 2 { // "start" and "report-done"
		select {
		case <-told.heard:
		case err := <-done:
			t.Fatalf("the order's work ended before its report was told: %v", err)
		}
	}
	look()
	if active != 1 {
		t.Fatalf("%d pieces of work are under way for one order", active)
	}
	started := j.put(of, ordered.Head(), events.WorkStarted{Epoch: 1, Attempt: 1})
	j.put(of, started.Head(), events.WorkDone{Epoch: 1})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	active--
	look()
	if active != 0 || !slices.Equal(told.said, []string{"start of " + string(id), "report-done of " + string(id)}) || len(a.jobs) != 0 {
		t.Errorf("a closed order was worked on with %v and left %d jobs", told.said, len(a.jobs))
	}
}

// TestOnlyAClosedOrderNeedsNothingMore: a refusal that leaves the order open is
// waited out. Taken for its end, the work would be begun again at once, for ever.
func TestOnlyAClosedOrderNeedsNothingMore(t *testing.T) {
	for _, code := range []string{"work-closed", "work-not-started", "undo-not-ordered"} {
		if err := closedIsNil(aggregates.Refuse(code, "x")); err != nil {
			t.Errorf("%s: %v", code, err)
		}
	}
	for _, code := range []string{"stale-epoch", "access-denied", "user-unknown", "bad-request", "busy", "work-unknown"} {
		if closedIsNil(aggregates.Refuse(code, "x")) == nil {
			t.Errorf("%s is taken for the end of the order", code)
		}
	}
}
