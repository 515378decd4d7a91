package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestInterruptWaitsForTheAnswer: a command that was sent is waited for, so that
// what it began is known and can be ended; for some seconds, and not for ever.
func TestInterruptWaitsForTheAnswer(t *testing.T) {
	write := func(ctx context.Context, by roundTrip) (string, error) {
		c := &client{app: &app{streams: streams{err: io.Discard}}, http: &http.Client{Transport: by}}
		_, accepted, err := c.write(ctx, http.MethodPost, "/v1/environments", nil)
		return accepted.ID, err
	}
	ctx, interrupt := context.WithCancel(t.Context())
	id, err := write(ctx, func(r *http.Request) (*http.Response, error) {
		interrupt()
		if err := r.Context().Err(); err != nil {
			return nil, err
		}
		return &http.Response{StatusCode: http.StatusAccepted, Body: io.NopCloser(strings.NewReader(`{"id":"made"}`))}, nil
	})
	if err != nil || id != "made" {
		t.Errorf("interrupted before the answer came: %q, %v", id, err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, interrupt := context.WithCancel(t.Context())
		began := time.Now()
		_, err := write(ctx, func(r *http.Request) (*http.Response, error) {
			interrupt()
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		if f, _ := errors.AsType[*failure](err); f == nil || f.Code != "interrupted" || f.Next == "" || time.Since(began) != answerPatience {
			t.Errorf("a server that never answers: %+v after %s", f, time.Since(began))
		}
	})
	if _, err := write(ctx, func(*http.Request) (*http.Response, error) { t.Error("sent after the interrupt"); return nil, io.EOF }); err == nil {
		t.Error("a command that was interrupted before it was sent was done")
	}
}
