package commands_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/projections"
)

// behind are reads that never come to the journal's tip; they tell until when
// they are waited for.
type behind struct{ until chan time.Time }

var errBehind = errors.New("the reads are behind")

func (b behind) AtTip(ctx context.Context) (*projections.View, error) {
	until, _ := ctx.Deadline() // zero: for ever
	b.until <- until
	return nil, errBehind
}

// TestPlansAndCommandsAreGivenUp: neither a command nor its plan waits for ever,
// whatever the caller's patience.
func TestPlansAndCommandsAreGivenUp(t *testing.T) {
	w := newWorld(t)
	reads := behind{make(chan time.Time, 1)}
	d := w.doorReading(t, w.journal, w.users, reads)
	r := commands.Request{Account: "acme", Kind: events.KindTemplate, Verb: "instantiate", Body: []byte(`{"template":"73291467","region":"sydney"}`), From: w.users["actor:acme/ann"]}
	for name, ask := range map[string]func() error{
		"a command": func() error { _, err := d.Do(context.Background(), r); return err },
		"a plan":    func() error { _, err := d.Plan(context.Background(), r); return err },
	} {
		before := time.Now()
		if err := ask(); !errors.Is(err, errBehind) {
			t.Fatalf("%s: %v", name, err)
		}
		if until := <-reads.until; until.IsZero() || until.After(before.Add(time.Minute)) {
			t.Errorf("%s waits until %s", name, until)
		}
	}
}
