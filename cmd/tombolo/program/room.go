package program

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/journal"
	"github.com/tombolo-vdc/tombolo/handlers/api"
)

// finishing says what the last tenth of the journal is kept for: what ends, undoes or releases something, and what
// follows from what was accepted before, so that no process stands still in the middle. What people begin anew waits
// until there is more room.
func finishing(p journal.Proposal) bool {
	if p.Causation != "" { // a process goes on with what was begun
		return true
	}
	switch e := p.Event.(type) {
	case events.WorkEvent, events.OperationEvent:
		return true // orders come from processes: these are reports, cancellations, second tries
	case events.NameReleased, events.LeasesReleased, events.LeaseRevoked, events.UserRemoved:
		return true
	case events.EnvironmentFailed, events.EnvironmentDeletionAccepted, events.EnvironmentDeleted:
		return true
	case events.ReplacementUnqueued, events.VersionAbandoned, events.VersionRetired, events.TemplateDeletionAccepted, events.TemplateDeleted:
		return true
	case events.RegionsChanged:
		return len(e.Add) == 0
	case events.ProtectionSet:
		return !e.Protected // what is protected cannot be deleted
	case events.CopyVerified, events.CopyFailed, events.CopyDamaged, events.CopyRemoved, events.RemovalWanted:
		return true
	case events.MachinesObserved:
		return true // what is seen of them is so, whether there is room or not
	case events.EpochStarted, events.AgentReplaced, events.RegionDraining, events.RegionRetired:
		return true // without an agent nothing is finished
	}
	return false
}

// alarm tells the log how full the journal is.
func (p *Program) alarm(level journal.Level, used, limit uint64) {
	log := p.config.Log.With("part", "journal", "bytes", used, "limit", limit)
	switch level {
	case journal.Roomy:
		log.Info("the journal has room again")
	case journal.Filling:
		log.Warn("the journal is filling", "next", api.Fullness(level))
	case journal.NearlyFull:
		log.Error("the journal is nearly full", "next", api.Fullness(level))
	}
}

// inboxLimit is the most bytes of commands that wait, of so many for all streams.
func inboxLimit(store int64) int64 { return min(inboxBytes, store/8) }

// mostOfJournal is the highest limit of a journal where all streams together may
// take so many bytes. Each event of a tenant is in the tenant's mirror a second
// time, and a mirror cannot have a limit of its own (bus.Feeds): of what the inbox
// leaves, two fifths are the journal's, two the mirrors', and the last is for the
// documents and for the regions' events, which every mirror has.
func mostOfJournal(store int64) int64 { return (store - inboxLimit(store)) / 5 * 2 }

// storeFullness says in words what the room for all streams asks for; nothing
// where it asks for nothing.
func storeFullness(l journal.Level) string {
	switch l {
	case journal.Filling:
		return "journal, mirrors, inbox and documents together take eight tenths of what they may: make room on it"
	case journal.NearlyFull:
		return "journal, mirrors, inbox and documents together take nine tenths of what they may, and then nothing is taken any more: make room on it now"
	}
	return ""
}

// storeEvery is how often it is looked how much all streams take.
const storeEvery = 10 * time.Second

// watchStore tells the log how full the room for all streams is, whenever that
// becomes another level, until the context ends.
func (p *Program) watchStore(ctx context.Context) {
	ticks := time.NewTicker(storeEvery)
	defer ticks.Stop()
	for level := journal.Roomy; ; {
		if used, most, err := p.bus.Room(); err != nil {
			p.config.Log.Error("it is not known how much the streams take", "error", err)
		} else {
			level = p.storeAlarm(level, used, most)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}

// storeAlarm gives the level, and tells the log of it where it is another one than before.
func (p *Program) storeAlarm(before journal.Level, used, most uint64) journal.Level {
	log := p.config.Log.With("part", "bus", "bytes", used, "most", most)
	now := journal.LevelOf(used, most)
	switch {
	case now == before:
	case now == journal.Roomy:
		log.Info("the bus has room again")
	case now == journal.Filling:
		log.Warn("the bus is filling", "next", storeFullness(now))
	default:
		log.Error("the bus is nearly full", "next", storeFullness(now))
	}
	return now
}

// grow raises the journal's limit while it runs.
func (p *Program) grow(ctx context.Context, bytes int64) error {
	_, store, err := p.bus.Room()
	if err != nil {
		return err
	}
	if most := mostOfJournal(int64(store)); bytes > most {
		return &api.Problem{Type: "about:blank", Title: "Unprocessable Entity", Status: 422, Code: "journal-limit-too-high",
			Detail: fmt.Sprintf("of the %d bytes that all streams may take, the journal may take %d: %d are asked for", store, most, bytes), Next: "make room on the disk, and start again"}
	}
	err = p.journal.Grow(ctx, bytes)
	if errors.Is(err, journal.ErrOptions) {
		return &api.Problem{Type: "about:blank", Title: "Conflict", Status: 409, Code: "journal-limit-not-higher", Detail: err.Error(), Next: "name a higher limit"}
	}
	return err
}
