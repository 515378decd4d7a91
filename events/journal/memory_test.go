package journal_test

import (
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/events/journal/journaltest"
)

func TestMemoryConforms(t *testing.T) {
	journaltest.Run(t, func(t *testing.T) journaltest.Subject {
		m := journal.NewMemory(events.NewRegistry(), time.Now)
		m.SetLimit(journaltest.Limit, journaltest.Finishing)
		return journaltest.Subject{
			Journal: m,
			Reopen:  func() error { _, err := m.Tip(t.Context()); return err },
			LoseAck: func() { m.LoseAcks(1) },
			Cut:     m.Cut, Heal: m.Heal,
			Remove: m.Remove, Put: m.Put, Message: m.Message, Vanish: m.Vanish,
		}
	})
}
