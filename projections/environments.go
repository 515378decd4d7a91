package projections

import (
	"errors"
	"fmt"
	"iter"

	"github.com/tombolo-vdc/tombolo/events"
)

// Environments answers: which environments has an account, where, in which
// state, which were made from a template, and how are their machines?
//
//	environments.environment         <environment id>                       → EnvironmentRow, deleted ones too
//	environments.environment.place   <account> <region> <name> <id>         not deleted
//	environments.environment.name    <account> <name> <region> <id>         not deleted
//	environments.environment.region  <region> <account> <id>                not deleted
//	environments.environment.origin  <template number> <id>                 not deleted
//	environments.map                 <environment id>                       → EnvironmentMapRow
//	environments.machine             <environment id> <machine>             → MachineRow, once it was seen
//	environments.edge                <environment id>                       → EnvironmentEdgeRow, once it was set
type Environments struct{}

// EnvironmentState is how far an environment is.
type EnvironmentState string

// The states of an environment.
const (
	EnvironmentDeclaring EnvironmentState = "declaring" // declared; what is region-bound has no values yet
	EnvironmentReceiving EnvironmentState = "receiving" // has its values; its disks are uploaded, or cloned from a template
	EnvironmentCreated   EnvironmentState = "created"   // its disks are in the region; it can be used and saved
	EnvironmentFailed    EnvironmentState = "failed"    // it could not be made; the cause says why
	EnvironmentDeleting  EnvironmentState = "deleting"  // its deletion was accepted; the region may still hold something
	EnvironmentDeleted   EnvironmentState = "deleted"   // nothing of it is left in the region
)

// EnvironmentRow is an environment as it is now.
type EnvironmentRow struct {
	ID        events.EnvironmentID `json:"id"`
	Account   events.AccountID     `json:"account"`
	Region    events.RegionID      `json:"region"`
	Name      string               `json:"name"` // slug
	Display   string               `json:"display"`
	State     EnvironmentState     `json:"state"`
	Graph     events.Digest        `json:"graph"`                   // as declared; once created with the disks' digests
	Power     map[string]string    `json:"power,omitempty"`         // by machine, where it was set apart from all
	PowerAll  string               `json:"power_all,omitempty"`     // last set for all machines; empty: as the graph declares
	Machines  int                  `json:"machine_count,omitempty"` // how many it has; 0 of those from before machines ran
	Networks  int                  `json:"network_count,omitempty"`
	Observed  map[string]int       `json:"observed,omitempty"` // how many machines were last seen in which state
	Origin    *events.TemplateRef  `json:"origin,omitempty"`   // what it was made from
	Disks     []events.DiskWanted  `json:"disks,omitempty"`
	Operation events.OperationID   `json:"operation"` // that made it
	DeletedBy events.OperationID   `json:"deleted_operation,omitempty"`
	Cause     *events.Cause        `json:"cause,omitempty"`
	Declared  Time                 `json:"created_at"`          // when it was declared
	Ready     Time                 `json:"ready_at,omitzero"`   // when its disks were there
	Ended     Time                 `json:"deleted_at,omitzero"` // when its deletion was accepted
	Gone      Time                 `json:"gone_at,omitzero"`
	Revision  uint64               `json:"revision"`
}

// EnvironmentMapRow is what stands for an environment's region-bound resources.
type EnvironmentMapRow struct {
	Environment events.EnvironmentID  `json:"environment"`
	Map         []events.Substitution `json:"map"`
}

var (
	environmentPlaces = index("place", func(e *EnvironmentRow, in *entries) {
		if e.State != EnvironmentDeleted {
			in.add(string(e.Account), string(e.Region), e.Name)
		}
	})
	environmentNames = index("name", func(e *EnvironmentRow, in *entries) {
		if e.State != EnvironmentDeleted {
			in.add(string(e.Account), e.Name, string(e.Region))
		}
	})
	environmentRegions = index("region", func(e *EnvironmentRow, in *entries) {
		if e.State != EnvironmentDeleted {
			in.add(string(e.Region), string(e.Account))
		}
	})
	environmentOrigins = index("origin", func(e *EnvironmentRow, in *entries) {
		if e.Origin != nil && e.State != EnvironmentDeleted {
			in.add(string(e.Origin.Template))
		}
	})
	environments = NewTable("environments", "environment", func(e EnvironmentRow) Key { return Key{string(e.ID)} },
		environmentPlaces, environmentNames, environmentRegions, environmentOrigins)
	environmentMaps = NewTable("environments", "map", func(m EnvironmentMapRow) Key { return Key{string(m.Environment)} })
)

// Name is "environments".
func (Environments) Name() string { return "environments" }

// Shape of the rows.
func (Environments) Shape() int { return 3 }

// Tables of environments.
func (Environments) Tables() []Described {
	return []Described{environments, environmentMaps, environmentMachines, environmentEdges}
}

// Apply folds the facts of environments.
func (Environments) Apply(w *Batch, r events.Record) error {
	fact, ok := r.Event.(events.EnvironmentEvent)
	if !ok {
		return nil
	}
	id := events.EnvironmentID(r.Aggregate.ID)
	switch e := fact.(type) {
	case events.EnvironmentDeclared:
		return create(environments, w, r, EnvironmentRow{ID: id, Account: r.Aggregate.Account, Region: r.Aggregate.Region, Name: e.Name,
			Display: e.Display, State: EnvironmentDeclaring, Graph: e.Graph, Origin: e.Origin, Disks: e.Disks, Operation: e.Operation, Machines: e.Machines, Networks: e.Networks,
			Declared: stored(r), Revision: r.Revision})
	case events.EnvironmentMapped:
		if err := replace(environmentMaps, w, EnvironmentMapRow{id, e.Map}); err != nil {
			return err
		}
	case events.MachinesObserved:
		counts, declared, err := observe(w, r, e)
		if err != nil {
			return err
		}
		return environments.Change(w, func(row *EnvironmentRow) {
			row.Revision = r.Revision
			row.seen(counts, declared)
		}, r.Aggregate.ID)
	case events.EdgeSet:
		if err := replace(environmentEdges, w, EnvironmentEdgeRow{id, e.Rules, e.SourcePorts, e.Open, e.Operation, stored(r)}); err != nil {
			return err
		}
	case events.EnvironmentDeleted:
		if err := errors.Join(environmentMaps.Delete(w, r.Aggregate.ID), forget(w, r.Aggregate.ID)); err != nil {
			return err
		}
	}
	var unknown error
	err := environments.Change(w, func(row *EnvironmentRow) {
		row.Revision = r.Revision
		unknown = row.fold(r, fact)
	}, r.Aggregate.ID)
	if unknown != nil {
		return unknown
	}
	return err
}

func (e *EnvironmentRow) fold(r events.Record, fact events.EnvironmentEvent) error {
	switch f := fact.(type) {
	case events.EnvironmentMapped:
		if e.State == EnvironmentDeclaring {
			e.State = EnvironmentReceiving
		}
	case events.EnvironmentCreated:
		e.State, e.Graph, e.Ready = EnvironmentCreated, f.Graph, stored(r)
	case events.EnvironmentFailed:
		e.State, e.Cause = EnvironmentFailed, &f.Cause
	case events.PowerSet:
		names := f.Names()
		if len(names) == 0 {
			e.PowerAll, e.Power = f.Power, nil
			break
		}
		if e.Power == nil {
			e.Power = map[string]string{}
		}
		for _, m := range names {
			e.Power[m] = f.Power
		}
	case events.EdgeSet: // in a row of its own
	case events.EnvironmentDeletionAccepted:
		e.State, e.DeletedBy, e.Ended = EnvironmentDeleting, f.Operation, stored(r)
	case events.EnvironmentDeleted:
		e.State, e.Gone, e.Observed = EnvironmentDeleted, stored(r), nil
	default:
		return fmt.Errorf("environments do not know %s: %w", fact.EventType(), events.ErrUnknownEvent)
	}
	return nil
}

// PowerOf is the declared power state of one machine, given what the graph declares for it.
func (e EnvironmentRow) PowerOf(machine, declared string) string {
	if p, ok := e.Power[machine]; ok {
		return p
	}
	if e.PowerAll != "" {
		return e.PowerAll
	}
	return declared
}

// Environment gives one environment by its id, deleted ones too; false if there is none.
func (Environments) Environment(r Reader, id events.EnvironmentID) (EnvironmentRow, bool, error) {
	return environments.Get(r, string(id))
}

// Map gives what stands for an environment's region-bound resources; false while
// that is not known, and once it is deleted.
func (Environments) Map(r Reader, id events.EnvironmentID) ([]events.Substitution, bool, error) {
	row, ok, err := environmentMaps.Get(r, string(id))
	return row.Map, ok, err
}

// Named gives the account's environments with a name (a slug), at most one per
// region that is not being deleted. An empty region stands for all.
func (Environments) Named(r Reader, account events.AccountID, region events.RegionID, slug string) ([]EnvironmentRow, error) {
	prefix := Key{string(account), slug}
	if region != "" {
		prefix = append(prefix, string(region))
	}
	return gather(environments, r, Query[EnvironmentRow]{By: environmentNames, Prefix: prefix})
}

// List gives the account's environments that are not deleted, in one region or
// (if that is empty) in all, by region and name, a page at a time.
func (Environments) List(r Reader, account events.AccountID, region events.RegionID, limit int, resume string) (Page[EnvironmentRow], error) {
	prefix := Key{string(account)}
	if region != "" {
		prefix = append(prefix, string(region))
	}
	return environments.Scan(r, Query[EnvironmentRow]{By: environmentPlaces, Prefix: prefix, Limit: limit, Resume: resume})
}

// InRegion gives everybody's environments in a region that are not deleted, by
// account and id, a page at a time.
func (Environments) InRegion(r Reader, region events.RegionID, limit int, resume string) (Page[EnvironmentRow], error) {
	return environments.Scan(r, Query[EnvironmentRow]{By: environmentRegions, Prefix: Key{string(region)}, Limit: limit, Resume: resume})
}

// MadeFrom yields everybody's environments made from any version of a template
// that are not deleted, by id.
func (Environments) MadeFrom(r Reader, template events.TemplateID) iter.Seq2[EnvironmentRow, error] {
	return environments.All(r, Query[EnvironmentRow]{By: environmentOrigins, Prefix: Key{string(template)}})
}
