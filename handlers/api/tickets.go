package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
)

// RegionTicket lets its bearer ask a region itself.
type RegionTicket struct {
	Region events.RegionID `json:"region"`
	Ticket string          `json:"ticket" doc:"Authorization: Bearer of requests to the region, in the place of the token, which no region takes"`
	Until  time.Time       `json:"expires_at" doc:"when the region refuses it (ticket-expired): ask for a new one"`
}

type ticketInput struct {
	Scope
	Region string `path:"region" doc:"id, name or alias"`
}

// ticketRoutes give people what they show to regions.
func (s *Server) ticketRoutes() {
	huma.Register(s.api, huma.Operation{OperationID: "ticket-for-region", Method: http.MethodPost, Path: "/v1/regions/{region}/ticket", Tags: []string{"regions"},
		Summary: "A ticket for a region's own HTTP interface, exports among it, in the place of the token"},
		func(ctx context.Context, in *ticketInput) (*plain[RegionTicket], error) {
			if s.Tickets == nil {
				return nil, problem(http.StatusServiceUnavailable, "not-here", "a region gives no tickets").withNext("ask the control plane at %s", s.Home)
			}
			id, err := s.knownRegion(ctx, in.Region)
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			out := RegionTicket{Region: id}
			if out.Ticket, out.Until, err = s.ticket(ctx, trust.Ticket{Region: id, For: trust.ToAsk}); err != nil {
				return nil, s.problemOf(ctx, err)
			}
			return &plain[RegionTicket]{out}, nil
		})
}

// ticketEnds is at which times tickets end, so that answers with a ticket in
// them are the same for a while, and who watches is shown changes only.
const ticketEnds = 15 * time.Minute

// ticket signs a ticket of the caller's, and says until when it is good.
func (s *Server) ticket(ctx context.Context, t trust.Ticket) (signed string, until time.Time, err error) {
	u := callerOf(ctx)
	t.Account, t.User, t.Key, t.Until = u.Account, u.User, u.Key, s.Now().UTC().Add(trust.TicketLife).Truncate(ticketEnds)
	signed, err = s.Tickets(t)
	return signed, t.Until, err
}

// uploadTicket is the caller's for the disks of an environment; empty for whom
// the region would not let send them, and at a region.
func (s *Server) uploadTicket(ctx context.Context, region events.RegionID, id events.EnvironmentID) (string, error) {
	if s.Tickets == nil || !callerOf(ctx).SendsDisks() {
		return "", nil
	}
	signed, _, err := s.ticket(ctx, trust.Ticket{Region: region, For: trust.ToUpload, Environment: id})
	return signed, err
}
