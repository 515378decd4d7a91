package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/commands"
	"github.com/tombolo-vdc/tombolo/projections"
)

// Machine is a machine of an environment: what it is declared to be, what its
// region's agent has seen of it, and how it is reached.
type Machine struct {
	ID          string             `json:"id"`
	Declared    string             `json:"declared" enum:"running,suspended,stopped,powered-off"`
	Observed    string             `json:"observed,omitempty" doc:"as it was seen last: running, suspended, stopped, powered-off or failed; absent before it was"`
	Cause       *events.Cause      `json:"cause,omitempty" doc:"why it is so"`
	Since       projections.Time   `json:"since,omitzero" doc:"when it was first seen so"`
	Accelerator string             `json:"accelerator,omitempty" example:"tcg"`
	Deaths      int                `json:"deaths,omitempty" doc:"within ten minutes before its last death"`
	Restart     *events.Verdict    `json:"restart,omitempty" doc:"whether it was started again after its last death, and why"`
	VApp        string             `json:"vapp,omitempty"`
	Interfaces  []MachineInterface `json:"interfaces"`
	Public      []MachinePublic    `json:"public"`
}

// MachineInterface is an interface that is joined to a network.
type MachineInterface struct {
	Index   int    `json:"index"`
	Network string `json:"network"`
	Address string `json:"address,omitempty"`
	MAC     string `json:"mac"`
}

// MachinePublic is a public address of a machine, and what it lets in.
type MachinePublic struct {
	Resource string `json:"resource"`
	Address  string `json:"address,omitempty" doc:"absent until the region's pool has given one"`
	Bound
	Open []Open `json:"open"`
}

// Environment is an environment in a list.
type Environment struct {
	projections.EnvironmentRow
	Now string `json:"power_now,omitempty" doc:"how its machines are seen: running, 2/3 running, starting" example:"2/3 running"`
}

func inList(e projections.EnvironmentRow) Environment { return Environment{e, e.Summary()} }

// machines lists the environment's machines.
func machines(v projections.Reader, e projections.EnvironmentRow, g graph.Graph, values []Mapped) ([]Machine, error) {
	rows, err := projections.Environments{}.Machines(v, e.ID)
	if err != nil {
		return nil, err
	}
	seen := map[string]projections.MachineRow{}
	for _, r := range rows {
		seen[r.Machine] = r
	}
	net, _ := g.Networking()
	out := []Machine{}
	for _, n := range g.Nodes {
		if n.Type != graph.Machine {
			continue
		}
		r := seen[n.ID]
		m := Machine{ID: n.ID, Declared: e.PowerOf(n.ID, string(n.Power)), Observed: r.Observed, Cause: r.Cause, Since: r.Since, Accelerator: r.Accelerator,
			Deaths: r.Deaths, Restart: r.Restart, VApp: vappOf(g, n.ID), Interfaces: []MachineInterface{}, Public: []MachinePublic{}}
		for _, f := range net.Of(n.ID) {
			address := ""
			if f.Address.IsValid() {
				address = f.Address.String()
			}
			m.Interfaces = append(m.Interfaces, MachineInterface{f.Index, f.Network, address, f.MAC})
		}
		for _, p := range net.Publics {
			if p.Machine == n.ID {
				value := valueOf(values, p.Resource)
				m.Public = append(m.Public, MachinePublic{p.Resource, value.To, value.Bound, openAt(value.To, value.Bound, p.Open)})
			}
		}
		out = append(out, m)
	}
	return out, nil
}

func valueOf(values []Mapped, resource string) Mapped {
	if i := slices.IndexFunc(values, func(m Mapped) bool { return m.Resource == resource }); i >= 0 {
		return values[i]
	}
	return Mapped{}
}

func vappOf(g graph.Graph, machine string) string {
	for _, e := range g.Edges {
		if n, ok := g.Node(e.From); ok && e.Type == graph.Contains && e.To == machine && n.Type == graph.VApp {
			return n.ID
		}
	}
	return ""
}

// OneEdge is an environment's edge: what it is set to let through, and what that
// comes to.
type OneEdge struct {
	Known
	Environment events.EnvironmentID `json:"environment"`
	Region      events.RegionID      `json:"region"`
	graph.EdgeState
	Set      projections.Time `json:"set_at,omitzero" doc:"when it was set last; absent where it is as the environment was made"`
	Forwards []Forward        `json:"forwards" doc:"the open ports with the machines that they lead to"`
}

// Forward is an open port with the machine that it leads to.
type Forward struct {
	Resource string `json:"resource"`
	Address  string `json:"address,omitempty"`
	Bound
	Open
	Machine string `json:"machine"`
	Target  string `json:"target" doc:"the machine's address on its network"`
}

// ChangedEdge is the answer to setting an edge: what changed, or would.
type ChangedEdge struct {
	Accepted
	commands.EdgePlan
	DryRun bool `json:"dry_run,omitempty" doc:"nothing was done"`
}

type powerWrite struct {
	EnvironmentWrite
	Body struct {
		Power    string   `json:"power" enum:"running,suspended,stopped,powered-off"`
		Machine  string   `json:"machine,omitempty" doc:"node id; with neither machines nor a vApp: all machines"`
		Machines []string `json:"machines,omitempty" doc:"node ids"`
		VApp     string   `json:"vapp,omitempty" doc:"node id: its machines"`
		Cold     bool     `json:"cold,omitempty" doc:"boot where stored memory does not fit the host's hardware, and lose what was in it"`
		Timeout  int      `json:"timeout,omitempty" minimum:"0" maximum:"3600" doc:"seconds that a guest has to shut down"`
	}
}

type edgeWrite struct {
	EnvironmentWrite
	DryRun bool `query:"dry_run" doc:"say what would change, and do nothing"`
	Body   struct {
		Rules       []events.EdgeRule    `json:"rules,omitempty" maxItems:"200" doc:"the first that matches decides"`
		SourcePorts string               `json:"source_ports,omitempty" doc:"that connections to the outside come from" example:"20000-29999"`
		Open        []events.EdgeOpening `json:"open,omitempty" doc:"a public address that is not named lets nothing in"`
	}
}

// Bodies of commands, as the door's table has them.
type (
	powerBody struct {
		environmentBody
		Machine  string   `json:"machine,omitempty"`
		Machines []string `json:"machines,omitempty"`
		VApp     string   `json:"vapp,omitempty"`
		Power    string   `json:"power"`
		Cold     bool     `json:"cold,omitempty"`
		Timeout  int      `json:"timeout,omitempty"`
	}
	edgeBody struct {
		environmentBody
		Rules       []events.EdgeRule    `json:"rules,omitempty"`
		SourcePorts string               `json:"source_ports,omitempty"`
		Open        []events.EdgeOpening `json:"open,omitempty"`
	}
)

func (s *Server) machineRoutes() {
	command(s, http.MethodPost, "/v1/environments/{ref}/power", "set-power", "Bring one machine, several, those of a vApp, or all to a power state", func(ctx context.Context, in *powerWrite) (Accepted, error) {
		e, account, err := s.knownEnvironment(ctx, in.Scope, in.Ref, in.Region)
		if err != nil {
			return Accepted{}, err
		}
		b := in.Body
		return s.send(ctx, in.Write, account, events.KindEnvironment, "set-power",
			powerBody{environmentBody{e.Region, e.ID}, b.Machine, b.Machines, b.VApp, b.Power, b.Cold, b.Timeout})
	})
	get(s, "/v1/environments/{ref}/edge", "get-edge", "What an environment's edge lets through", s.getEdge)
	accept(s, http.MethodPut, "/v1/environments/{ref}/edge", "set-edge", "Have the edge let through what is said, and nothing of what was set before", s.setEdge)
}

func (s *Server) setEdge(ctx context.Context, in *edgeWrite) (Accepted, ChangedEdge, error) {
	out := ChangedEdge{DryRun: in.DryRun}
	e, account, err := s.knownEnvironment(ctx, in.Scope, in.Ref, in.Region)
	if err != nil {
		return Accepted{}, out, err
	}
	body := edgeBody{environmentBody{e.Region, e.ID}, in.Body.Rules, in.Body.SourcePorts, in.Body.Open}
	raw, err := s.plan(ctx, in.Write, account, events.KindEnvironment, "set-edge", body)
	if err != nil {
		return Accepted{}, out, err
	}
	if err := json.Unmarshal(raw, &out.EdgePlan); err != nil || in.DryRun {
		return Accepted{}, out, err
	}
	out.Accepted, err = s.send(ctx, in.Write, account, events.KindEnvironment, "set-edge", body)
	return out.Accepted, out, err
}

func (s *Server) getEdge(ctx context.Context, v at, in *environmentInput) (OneEdge, uint64, error) {
	account, _, err := in.account(ctx)
	if err != nil {
		return OneEdge{}, 0, err
	}
	e, err := environment(v, account, in.Ref, in.Region)
	if err != nil {
		return OneEdge{}, 0, err
	}
	out := OneEdge{Known: v.known, Environment: e.ID, Region: e.Region, Forwards: []Forward{}}
	if s.Documents == nil {
		return out, 0, aggregates.Refuse("documents-missing", "what the environment consists of cannot be read here")
	}
	g, set, err := s.graphNow(ctx, v, e)
	if err != nil {
		return out, 0, err
	}
	out.EdgeState, out.Set = g.Edge(), set
	lines, _, err := projections.Environments{}.Map(v, e.ID)
	if err != nil {
		return out, 0, err
	}
	values, err := boundAll(v, e.Region, lines)
	if err != nil {
		return out, 0, err
	}
	net, _ := g.Networking()
	for _, p := range net.Publics {
		value := valueOf(values, p.Resource)
		for _, o := range openAt(value.To, value.Bound, p.Open) {
			out.Forwards = append(out.Forwards, Forward{p.Resource, value.To, value.Bound, o, p.Machine, addressText(p.Target)})
		}
	}
	return out, e.Revision, nil
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// graphNow is what an environment consists of, with its edge as it was set last,
// and when that was.
func (s *Server) graphNow(ctx context.Context, v projections.Reader, e projections.EnvironmentRow) (graph.Graph, projections.Time, error) {
	b, err := s.Documents.Get(ctx, e.Graph)
	if err != nil {
		return graph.Graph{}, projections.Time{}, err
	}
	var g graph.Graph
	if err := json.Unmarshal(b, &g); err != nil {
		return g, projections.Time{}, err
	}
	row, set, err := projections.Environments{}.Edge(v, e.ID)
	if err != nil || !set {
		return g, projections.Time{}, err
	}
	return g.WithEdge(row.Event()), row.Set, nil
}
