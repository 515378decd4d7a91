package board_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/board"
)

// Everyone is told each change once and in order, and who is slow holds up nobody.
func TestWatch(t *testing.T) {
	web := machines.ID{Environment: "e", Machine: "web"}
	b := board.New()
	b.Tell(machines.Status{ID: web, State: machines.Ended, End: machines.EndKilled}) // it was never there
	b.Tell(machines.Status{ID: web, State: machines.Paused, PID: 1})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	slow, entered := make(chan struct{}), make(chan struct{})
	slowSeen, ended := []machines.State{}, make(chan error)
	go func() {
		ended <- b.Watch(ctx, func(s machines.Status) {
			if len(slowSeen) == 0 {
				close(entered)
				<-slow
			}
			if slowSeen = append(slowSeen, s.State); s.End == machines.EndKilled {
				cancel()
			}
		})
	}()
	<-entered
	changes := []machines.Status{
		{ID: web, State: machines.Running, PID: 1},
		{ID: web, State: machines.Running, PID: 1, Used: 7}, // no other state
		{ID: web, State: machines.Running, PID: 2},          // another process
		{ID: web, State: machines.Ended, End: machines.EndCrashed},
		{ID: web, State: machines.Ended, End: machines.EndKilled},
		{ID: web, State: machines.Ended, End: machines.EndKilled}, // told already
	}
	for _, s := range changes {
		b.Tell(s)
	}
	close(slow)
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	want := []machines.State{machines.Paused, machines.Running, machines.Running, machines.Ended, machines.Ended}
	if !slices.Equal(slowSeen, want) {
		t.Errorf("%q", slowSeen)
	}
	// Who comes now sees nothing of it.
	ctx, cancel = context.WithCancel(t.Context())
	b.Tell(machines.Status{ID: machines.ID{Environment: "e", Machine: "app"}, State: machines.Paused})
	_ = b.Watch(ctx, func(s machines.Status) {
		if cancel(); s.ID == web {
			t.Errorf("%+v", s)
		}
	})
}
