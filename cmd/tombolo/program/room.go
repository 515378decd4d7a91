package program

import (
	"context"
	"errors"
	"fmt"

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

// grow raises the journal's limit while it runs.
func (p *Program) grow(ctx context.Context, bytes int64) error {
	if most := p.bus.MaxStore(); bytes > most {
		return &api.Problem{Type: "about:blank", Title: "Unprocessable Entity", Status: 422, Code: "journal-limit-too-high",
			Detail: fmt.Sprintf("the bus has %d bytes of the disk at most, and %d are asked for", most, bytes), Next: "make room on the disk, and start again"}
	}
	err := p.journal.Grow(ctx, bytes)
	if errors.Is(err, journal.ErrOptions) {
		return &api.Problem{Type: "about:blank", Title: "Conflict", Status: 409, Code: "journal-limit-not-higher", Detail: err.Error(), Next: "name a higher limit"}
	}
	return err
}
