package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
)

// entrance lets a command into a region itself: with a ticket of the control
// plane's, never with the token, and with a new one once that is refused as
// ticket-expired. Its methods may be called concurrently.
type entrance struct {
	client *client
	fetch  func(context.Context) (string, error)

	mu     sync.Mutex
	ticket string
}

// entranceTo is how to ask a region.
func (c *client) entranceTo(region string) *entrance {
	return &entrance{client: c, fetch: func(ctx context.Context) (string, error) {
		r, err := c.request(ctx, http.MethodPost, "/v1/regions/"+url.PathEscape(region)+"/ticket", nil, nil)
		if err != nil {
			return "", err
		}
		b, _, err := c.send(r)
		if err != nil {
			return "", err
		}
		var got api.RegionTicket
		return got.Ticket, json.Unmarshal(b, &got)
	}}
}

// reach gives the URL by which a region itself is asked, and the position at
// which that was so.
func (c *client) reach(ctx context.Context, region string) (base string, position uint64, err error) {
	b, err := c.read(ctx, "/v1/regions/"+url.PathEscape(region), nil)
	if err != nil {
		return "", 0, err
	}
	var to api.OneRegion
	if err := json.Unmarshal(b, &to); err != nil {
		return "", 0, err
	}
	if to.HTTP == "" {
		return "", 0, fail(exitError, "region-not-ready", "no agent of %s has said where it can be asked", to.Region.Region).
			withNext("is its agent running? tombolo region show %s", to.Region.Region)
	}
	return trust.URL(to.HTTP), to.Position, nil
}

// uploadTicket is a ticket for the disks that an environment still waits for.
func (c *client) uploadTicket(ctx context.Context, id string) (string, error) {
	b, err := c.read(ctx, envPath(id), nil)
	if err != nil {
		return "", err
	}
	var e pending
	if err := json.Unmarshal(b, &e); err != nil {
		return "", err
	}
	if len(e.Uploads) == 0 {
		return "", fail(exitError, "upload-not-wanted", "environment %s is %s and waits for no disks any more", id, e.State)
	}
	return e.Uploads[0].Ticket, nil
}

func (at *entrance) current(ctx context.Context) (string, error) {
	at.mu.Lock()
	defer at.mu.Unlock()
	if at.ticket != "" {
		return at.ticket, nil
	}
	var err error
	at.ticket, err = at.fetch(ctx)
	return at.ticket, err
}

// refused forgets a ticket whose time is over, and gives back err.
func (at *entrance) refused(ticket string, err error) error {
	if f, ok := errors.AsType[*failure](err); ok && f.Code == string(trust.TicketExpired) {
		at.mu.Lock()
		defer at.mu.Unlock()
		if at.ticket == ticket {
			at.ticket = ""
		}
	}
	return err
}

// open sends a request to the region; the answer's body is the caller's to close.
func (at *entrance) open(ctx context.Context, method, target string, body []byte, header map[string]string) (*http.Response, error) {
	ticket, err := at.current(ctx)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Authorization", "Bearer "+ticket)
	for k, v := range header {
		r.Header.Set(k, v)
	}
	start := time.Now()
	resp, err := at.client.http.Do(r)
	if err != nil {
		return nil, at.client.unreachable(err)
	}
	at.client.traced(r, resp, start)
	if resp.StatusCode < 400 {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, at.client.unreachable(err)
	}
	return nil, at.refused(ticket, at.client.problem(resp, b))
}

// send sends a request to the region and gives the answer's body.
func (at *entrance) send(ctx context.Context, method, target string, body []byte, header map[string]string) ([]byte, error) {
	resp, err := at.open(ctx, method, target, body, header)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, at.client.unreachable(err)
	}
	return b, nil
}
