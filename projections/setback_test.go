package projections

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
)

// digested is a stream whose events have digests that follow from their names.
func digested(names ...string) *stream {
	log := newStream()
	for i, name := range names {
		log.addRecord(events.Record{Event: one(name, uint64(i)), Digest: events.DigestOf([]byte(name))})
	}
	return log
}

// runOut gives what a feed ends with by itself.
func runOut(t *testing.T, f *Feed, from Follower) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	return f.Run(ctx, from)
}

// A journal that was restored from a backup and has grown since has other events
// where the feed has been; however the rows were stored, nothing of it is folded
// onto them, now and after a restart.
func TestAnotherJournalIsNotFolded(t *testing.T) {
	for name, o := range map[string]Options{
		"each event":  {BatchBytes: 1, fs: inMemory().fs},
		"as one":      inMemory(),
		"as a table":  {tableBytes: 1, fs: inMemory().fs},
		"many tables": {BatchBytes: 1, tableBytes: 1, fs: inMemory().fs},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, "db", o)
			f := feedOf(t, s, counts{}, things{})
			feedTo(t, f, digested("1", "2", "3", "4", "5"), 5)
			before := digest(t, f, 5, "things")
			grown := digested("1", "2", "3", "x", "y", "z", "z2")
			for range 2 {
				var stopped *StoppedError
				var set *Error
				err := runOut(t, f, grown)
				if !errors.As(err, &stopped) || stopped.Sequence != 6 || !errors.As(err, &set) || set.Code != CodeSetBack {
					t.Fatalf("the feed ended with %v", err)
				}
				if st := f.Status(); st.Position != 5 || !errors.As(st.Stopped, &set) || digest(t, f, 5, "things") != before {
					t.Errorf("%+v", st)
				}
				must(t, s.Close())
				s = openStore(t, "db", o)
				f = feedOf(t, s, counts{}, things{})
			}
			// Neither is it where rows are built beside them.
			must(t, f.Rebuild("things"))
			if err := runOut(t, f, grown); !errors.As(err, new(*StoppedError)) || f.Status().Projections[1].Built != 0 {
				t.Errorf("%v, %+v", err, f.Status())
			}
			// Its own journal it follows on, and the rows built anew are the same.
			same := digested("1", "2", "3", "4", "5", "6")
			waitBuilt(t, f, same)
			feedTo(t, f, same, 6)
			if digest(t, f, 5, "things") != before || digest(t, f, 6, "things") == before {
				t.Error("other rows")
			}
			must(t, s.Close())
		})
	}
}

// A journal that ends before what was folded says so at once, also where its
// next event would be the one that was folded last.
func TestAShorterJournalIsNotWaitedFor(t *testing.T) {
	s := openStore(t, "db", inMemory())
	f := feedOf(t, s, things{})
	names := []string{"1", "2", "3", "4", "5"}
	feedTo(t, f, digested(names...), 5)
	for tip := range 5 {
		var gap *journal.GapError
		if err := runOut(t, f, digested(names[:tip]...)); !errors.As(err, &gap) || gap.Found != 0 {
			t.Errorf("at tip %d: %v", tip, err)
		}
	}
	feedTo(t, f, digested(names...), 5)
	must(t, s.Close())
}

// A store that an earlier program wrote has no digest: it goes on, and has one then.
func TestAPositionWithoutADigest(t *testing.T) {
	o := inMemory()
	s := openStore(t, "db", o)
	feedTo(t, feedOf(t, s, things{}), digested("1", "2"), 2)
	must(t, s.db.Set(metaKey(metaFeed), binary.BigEndian.AppendUint64(nil, 2), pebble.Sync))
	must(t, s.Close())
	s = openStore(t, "db", o)
	f := feedOf(t, s, things{})
	feedTo(t, f, digested("1", "2", "3"), 3)
	var set *Error
	if err := runOut(t, f, digested("1", "2", "x")); !errors.As(err, &set) || set.Code != CodeSetBack {
		t.Errorf("the feed ended with %v", err)
	}
	must(t, s.Close())
	// What is no record of a position is not taken for one.
	for _, bad := range []string{"short", fmt.Sprintf("%s%s", make([]byte, 8), "sha256:")} {
		s = openStore(t, "db", o)
		must(t, s.db.Set(metaKey(metaFeed), []byte(bad), pebble.Sync))
		if _, err := s.Feed(things{}); err == nil {
			t.Errorf("%q was read", bad)
		}
		must(t, s.Close())
	}
}
