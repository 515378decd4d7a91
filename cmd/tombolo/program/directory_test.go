package program

import (
	"testing"

	"github.com/tombolo-vdc/tombolo/projections"
)

// TestDirectoryForgets: an answer is kept until an event of an account comes by,
// and one that was read before such an event is folded is not kept at all.
func TestDirectoryForgets(t *testing.T) {
	store, err := projections.Open(t.TempDir(), projections.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	feed, err := store.Feed(projections.Accounts{})
	if err != nil {
		t.Fatal(err)
	}
	d := newDirectory(feed)
	asked := 0
	find := func(meanwhile func()) {
		t.Helper()
		_, found, err := d.find("who", func(*projections.View) (projections.UserRow, bool, error) {
			asked++
			meanwhile()
			return projections.UserRow{User: "mia"}, true, nil
		})
		if err != nil || !found {
			t.Fatal(found, err)
		}
	}
	nothing := func() {}
	for _, step := range []struct {
		name      string
		before    func()
		meanwhile func()
		asked     int
	}{
		{"the first time", nothing, nothing, 1},
		{"kept", nothing, nothing, 1},
		{"an event came by, and is folded later", func() { d.forget(7) }, nothing, 2},
		{"still not folded", nothing, nothing, 3},
		{"before it came by", func() { d = newDirectory(feed) }, func() { d.forget(7) }, 4},
		{"what was read then was not kept", nothing, nothing, 5},
	} {
		step.before()
		if find(step.meanwhile); asked != step.asked {
			t.Errorf("%s: asked %d times, not %d", step.name, asked, step.asked)
		}
	}
}
