package template

import (
	"cmp"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// Superseded versions: how many stay, which go, and how the reference comes back to one.

// Keep says how many superseded versions stay. What there is beyond is retired,
// as after a switch; what was retired does not come back.
type Keep struct {
	Template events.TemplateID `json:"template"`
	Keep     int               `json:"keep"`
}

// Aggregate is the template.
func (c Keep) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Template) }

// Decide sets the number.
func (c Keep) Decide(s State, _ aggregates.Facts) (events.TemplateEvent, error) {
	if err := cmp.Or(s.live(c.Template), checkKeep(c.Keep)); err != nil {
		return nil, err
	}
	if s.keep == c.Keep {
		return nil, aggregates.Already("template %s keeps %s already", c.Template, count(c.Keep, "superseded version"))
	}
	return events.KeepSet{Keep: c.Keep}, nil
}

func checkKeep(n int) error {
	if n < 0 {
		return aggregates.RefuseAs(aggregates.Invalid, "bad-keep", "keep says how many superseded versions stay: 0 or more, not %d", n)
	}
	return nil
}

// Retire gives up a superseded version that is no longer to be kept.
type Retire struct {
	Template events.TemplateID `json:"template"`
	Version  int               `json:"version"`
}

// Aggregate is the version's template.
func (c Retire) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Template) }

// Decide retires a superseded version when more than keep are there: those that
// the reference left last stay, whatever their numbers.
func (c Retire) Decide(s State, _ aggregates.Facts) (events.TemplateEvent, error) {
	if s.stage(c.Version) != superseded {
		return nil, nil
	}
	later := 0
	for _, v := range s.versions {
		if v.stage == superseded && v.left > s.versions[c.Version-1].left {
			later++
		}
	}
	if later < s.keep {
		return nil, nil
	}
	return events.VersionRetired{Version: c.Version}, nil
}

// Rollback moves the reference back to a version that was kept.
type Rollback struct {
	Template  events.TemplateID  `json:"template"`
	Version   int                `json:"version"`
	Operation events.OperationID `json:"operation"`
}

// Aggregate is the version's template.
func (c Rollback) Aggregate(a events.AccountID) events.Aggregate { return Of(a, c.Template) }

// Decide activates a superseded version that is still kept.
func (c Rollback) Decide(s State, _ aggregates.Facts) (events.TemplateEvent, error) {
	if err := s.live(c.Template); err != nil {
		return nil, err
	}
	switch s.stage(c.Version) {
	case superseded:
		return events.VersionActivated{Version: c.Version, Replaces: s.active, Rollback: true, Operation: c.Operation}, nil
	case active:
		return nil, aggregates.Already("version %d of template %s is the active one", c.Version, c.Template)
	case retired:
		return nil, aggregates.Refuse("version-retired", "version %d of template %s is no longer kept", c.Version, c.Template).
			WithNext("keep more from here on: tombolo template keep %s --versions N", c.Template)
	}
	return nil, aggregates.RefuseAs(aggregates.NotFound, "version-unknown", "template %s has no version %d to go back to", c.Template, c.Version)
}
