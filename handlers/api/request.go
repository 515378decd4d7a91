package api

import (
	"context"
	"crypto/rand"
	"net/http"
	"reflect"
	"time"
)

type requestKey struct{}

// withRequestID names the request, for the log and for errors that say no more.
func withRequestID(w http.ResponseWriter, r *http.Request) *http.Request {
	id := rand.Text()
	w.Header().Set("Tombolo-Request", id)
	return r.WithContext(context.WithValue(r.Context(), requestKey{}, id))
}

func requestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}

func typeOf[T any]() reflect.Type { return reflect.TypeFor[T]() }

// contextFor is for what nobody's request is behind.
func contextFor(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}
