package machinestest

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// Host is where a driver under test has its machines. It outlives drivers; the suite has one driver at a time, and ends all
// machines.
type Host interface {
	Open(t testing.TB, disks machines.Disks) machines.Driver // the suite closes it
	KillProcess(t testing.TB, pid int)                       // as kill -9 does
	Forget(t testing.TB, id machines.ID)                     // the process goes on; all that the driver stored about the machine is gone
	Processes(t testing.TB) int                              // how many machines' processes there really are
	Socket(t testing.TB) string                              // a path for a network interface's
}

// Run holds a driver to the contract in package machines, with guests that boot from a disk.
func Run(t *testing.T, host func(t testing.TB) Host) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"lifecycle", lifecycle}, {"start again", startAgain}, {"start refused", startRefused}, {"several at once", severalAtOnce},
		{"pause together", pauseTogether}, {"save and resume", saveAndResume}, {"save and go on", saveAndGoOn},
		{"memory refused", memoryRefused}, {"process dies", processDies}, {"guest ends", guestEnds}, {"stop", stop},
		{"console", consoles}, {"screen", screen}, {"adopt", adopt}, {"ends while away", endsWhileAway}, {"epoch", epoch},
		{"forgotten", forgotten}, {"disk fails", diskFails}, {"network socket", networkSocket}, {"cancelled", cancelled},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &world{t: t, host: host(t), disks: NewDisks()}
			w.Driver = w.host.Open(t, w.disks.Device)
			t.Cleanup(w.end)
			c.run(t, w)
		})
	}
}

// world is a host with a driver.
type world struct {
	machines.Driver
	t     *testing.T
	host  Host
	disks *Disks
}

// first is the epoch of the suite's agent, unless a test says otherwise.
const first = 3

// end checks that nothing is left when all machines are killed.
func (w *world) end() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	list, err := w.List(ctx)
	for _, s := range list {
		err = errors.Join(err, w.Kill(ctx, 1<<30, s.ID))
	}
	if left, lerr := w.List(ctx); err != nil || lerr != nil || len(left) != 0 {
		w.t.Errorf("left at the end: %+v (%v, %v)", left, err, lerr)
	}
	if n := w.host.Processes(w.t); n != 0 {
		w.t.Errorf("%d processes are left at the end", n)
	}
	if err := w.Close(); err != nil {
		w.t.Error(err)
	}
}

// reopen is an agent that was killed and started again.
func (w *world) reopen() {
	w.t.Helper()
	w.close()
	w.Driver = w.host.Open(w.t, w.disks.Device)
}

func (w *world) close() {
	w.t.Helper()
	if err := w.Close(); err != nil {
		w.t.Fatal(err)
	}
}

func id(name string) machines.ID { return machines.ID{Environment: "env-1", Machine: name} }

// Spec is a machine that boots the suite's guest.
func Spec(name string) machines.Spec {
	return machines.Spec{ID: id(name), Owner: "order-" + name, Epoch: first, CPUs: 1, Memory: 32 << 20,
		Disks: []machines.Disk{{Name: "root", Size: DiskSize}}}
}

// boot starts a machine and waits until its guest is ready.
func (w *world) boot(name string) *Guest {
	w.t.Helper()
	w.start(Spec(name), nil)
	w.proceed(name)
	g := Join(w.t, w, id(name))
	g.Await("ready")
	return g
}

func (w *world) start(s machines.Spec, m *machines.Memory) {
	w.t.Helper()
	if err := w.Start(w.t.Context(), s, m); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) proceed(names ...string) {
	w.t.Helper()
	if err := w.Continue(w.t.Context(), first, ids(names)...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) pause(names ...string) {
	w.t.Helper()
	if err := w.Pause(w.t.Context(), first, ids(names)...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) kill(name string) {
	w.t.Helper()
	if err := w.Kill(w.t.Context(), first, id(name)); err != nil {
		w.t.Fatal(err)
	}
}

// capture pauses nothing; the test's end lets go of it.
func (w *world) capture(name string) *machines.Capture {
	w.t.Helper()
	c, err := w.Capture(w.t.Context(), first, id(name))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return c
}

func ids(names []string) []machines.ID {
	out := make([]machines.ID, len(names))
	for i, n := range names {
		out[i] = id(n)
	}
	return out
}

func (w *world) status(name string) machines.Status {
	w.t.Helper()
	s, err := w.Status(w.t.Context(), id(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) wantState(name string, want machines.State) machines.Status {
	w.t.Helper()
	s := w.status(name)
	if s.State != want {
		w.t.Fatalf("%s is %s, not %s: %s", name, s.State, want, s.Text)
	}
	return s
}

func (w *world) wantList(names ...string) {
	w.t.Helper()
	list, err := w.List(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var got []string
	for _, s := range list {
		got = append(got, s.ID.Machine)
	}
	slices.Sort(got)
	if !slices.Equal(got, names) {
		w.t.Fatalf("the list has %q, not %q", got, names)
	}
}

func wantCode(t testing.TB, err error, want machines.Code) {
	t.Helper()
	if machines.CodeOf(err) != want {
		t.Errorf("%v, not %s", err, want)
	}
}

// watch follows the states until the test ends.
func (w *world) watch() <-chan machines.Status {
	seen := make(chan machines.Status, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	d := w.Driver
	go func() { ended <- d.Watch(ctx, func(s machines.Status) { seen <- s }) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			w.t.Errorf("watch: %v", err)
		}
	})
	return seen
}

// await gives the next status that fits.
func await(t testing.TB, seen <-chan machines.Status, fits func(machines.Status) bool) machines.Status {
	t.Helper()
	timeout := time.After(patience)
	var others []machines.Status
	for {
		select {
		case s := <-seen:
			if fits(s) {
				return s
			}
			others = append(others, s)
		case <-timeout:
			t.Fatalf("never seen; %+v", others)
		}
	}
}

func ended(name string) func(machines.Status) bool {
	return func(s machines.Status) bool { return s.ID == id(name) && s.State == machines.Ended }
}
