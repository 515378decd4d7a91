package environment

import (
	"reflect"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
)

// SetEdge has the environment's edge let through what it says, and nothing of
// what was set before. Whether the names in it are the environment's is for
// whoever sends it to find out.
type SetEdge struct {
	Ref
	Rules       []events.EdgeRule    `json:"rules,omitempty"`
	SourcePorts string               `json:"source_ports,omitempty"`
	Open        []events.EdgeOpening `json:"open,omitempty"`
	Operation   events.OperationID   `json:"operation"`
}

// Decide sets what differs from what was set last.
func (c SetEdge) Decide(s State, _ aggregates.Facts) (events.EnvironmentEvent, error) {
	if err := s.usable(c.Ref); err != nil {
		return nil, err
	}
	e := events.EdgeSet{Rules: c.Rules, SourcePorts: c.SourcePorts, Open: c.Open, Operation: c.Operation}
	if s.edge != nil {
		same := *s.edge
		if same.Operation = c.Operation; reflect.DeepEqual(same, e) {
			return nil, aggregates.Already("its edge was set so last")
		}
	}
	return e, nil
}
