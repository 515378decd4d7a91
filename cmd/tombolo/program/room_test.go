package program

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/tombolo-vdc/tombolo/events/journal"
)

// TestRoomForMirrors: a journal and its tenants' mirrors, full both, and the
// inbox leave a fifth or so of what the streams may take, however large the disk.
func TestRoomForMirrors(t *testing.T) {
	for _, store := range []int64{32 << 20, 1 << 30, 32 << 30, 4 << 40} {
		most := mostOfJournal(store)
		if left := store - inboxLimit(store) - 2*most; most < store/3 || left < store/6 {
			t.Errorf("of %d bytes the journal may take %d, which leaves %d", store, most, left)
		}
	}
}

// TestStoreAlarm: the log is told of each level once.
func TestStoreAlarm(t *testing.T) {
	var log bytes.Buffer
	p := &Program{config: Config{Log: slog.New(slog.NewTextHandler(&log, nil))}}
	level := journal.Roomy
	const most = 1 << 30
	for _, c := range []struct {
		used uint64
		told string // part of what the log is told
	}{
		{most / 2, ""},
		{most / 10 * 8, "the bus is filling"},
		{most / 20 * 17, ""},
		{most / 100 * 95, "the bus is nearly full"},
		{most, ""},
		{most / 2, "the bus has room again"},
	} {
		log.Reset()
		level = p.storeAlarm(level, c.used, most)
		if said := log.String(); c.told == "" && said != "" || !strings.Contains(said, c.told) {
			t.Errorf("at %d of %d bytes: %q, want %q", c.used, most, said, c.told)
		}
	}
}
