package machinestest

import (
	"bytes"
	"context"
	"errors"
	"image/png"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

func lifecycle(t *testing.T, w *world) {
	c, err := w.Capabilities(t.Context())
	if err != nil || !c.Available || c.Hardware.Accelerator == "" || c.Hardware.Machine == "" || c.Hardware.CPU == "" || c.Hardware.Emulator == "" || c.Probe == "" {
		t.Fatalf("%+v, %v", c, err)
	}
	_, err = w.Status(t.Context(), id("web"))
	wantCode(t, err, machines.MachineUnknown)
	seen := w.watch()
	w.start(Spec("web"), nil)
	await(t, seen, func(s machines.Status) bool { return s.ID == id("web") && s.State == machines.Paused })
	s := w.wantState("web", machines.Paused)
	if s.Owner != "order-web" || s.Epoch != first || s.PID == 0 || s.Started.IsZero() || s.Memory != 32<<20 {
		t.Errorf("%+v", s)
	}
	g := Join(t, w, id("web"))
	for range 2 {
		w.proceed("web")
	}
	await(t, seen, func(s machines.Status) bool { return s.State == machines.Running })
	g.Await("ready")
	if s := w.wantState("web", machines.Running); s.Used <= 0 {
		t.Errorf("%+v", s)
	}
	for range 2 {
		w.pause("web")
		w.wantState("web", machines.Paused)
	}
	await(t, seen, func(s machines.Status) bool { return s.State == machines.Paused })
	w.proceed("web")
	g.Ask("c")
	w.wantList("web")
	for range 2 {
		w.kill("web")
		w.wantList()
	}
	if s := await(t, seen, ended("web")); s.End != machines.EndKilled {
		t.Errorf("%+v", s)
	}
	_, err = w.Status(t.Context(), id("web"))
	wantCode(t, err, machines.MachineUnknown)
	for _, err := range []error{
		w.Continue(t.Context(), first, id("web")), w.Pause(t.Context(), first, id("web")), w.Stop(t.Context(), first, id("web")),
		second(w.Capture(t.Context(), first, id("web"))), second(w.Console(t.Context(), id("web"))),
		second(w.Display(t.Context(), id("web"))), second(w.Screenshot(t.Context(), id("web"))),
	} {
		wantCode(t, err, machines.MachineUnknown)
	}
}

func second[T any](_ T, err error) error { return err }

func startAgain(t *testing.T, w *world) {
	g := w.boot("web")
	g.Ask("mQ")
	before := w.status("web")
	again := Spec("web")
	again.Owner, again.Epoch = "order-2", first+1
	w.start(again, nil)
	if s := w.wantState("web", machines.Running); s.PID != before.PID {
		t.Errorf("another process: %+v, %+v", before, s)
	}
	if a := g.Ask("c"); a.Mark != 'Q' {
		t.Errorf("%+v", a)
	}
	for name, change := range map[string]func(*machines.Spec){
		"processors": func(s *machines.Spec) { s.CPUs = 2 },
		"memory":     func(s *machines.Spec) { s.Memory *= 2 },
		"disks":      func(s *machines.Spec) { s.Disks = nil },
	} {
		t.Run(name, func(t *testing.T) {
			other := again
			change(&other)
			wantCode(t, w.Start(t.Context(), other, nil), machines.MachineExists)
		})
	}
	w.wantList("web")
	g.Ask("c")
}

func startRefused(t *testing.T, w *world) {
	nic := machines.NIC{MAC: "52:54:00:12:34:56", Socket: w.host.Socket(t)}
	for name, change := range map[string]func(*machines.Spec){
		"environment": func(s *machines.Spec) { s.ID.Environment = "../x" },
		"machine":     func(s *machines.Spec) { s.ID.Machine = "" },
		"owner":       func(s *machines.Spec) { s.Owner = "" },
		"processors":  func(s *machines.Spec) { s.CPUs = 0 },
		"memory":      func(s *machines.Spec) { s.Memory = 32<<20 + 1 },
		"disk twice":  func(s *machines.Spec) { s.Disks = append(s.Disks, s.Disks[0]) },
		"disk size":   func(s *machines.Spec) { s.Disks = []machines.Disk{{Name: "root", Size: 100}} },
		"other size":  func(s *machines.Spec) { s.Disks = []machines.Disk{{Name: "root", Size: DiskSize * 2}} },
		"no device":   func(s *machines.Spec) { s.Disks = append(s.Disks, machines.Disk{Name: "lost", Size: 512}) },
		"MAC":         func(s *machines.Spec) { s.NICs = []machines.NIC{{MAC: "01:00:00:00:00:00", Socket: nic.Socket}} },
		"MAC twice":   func(s *machines.Spec) { s.NICs = []machines.NIC{nic, {MAC: nic.MAC, Socket: nic.Socket + "2"}} },
		"socket":      func(s *machines.Spec) { s.NICs = []machines.NIC{{MAC: nic.MAC, Socket: "relative"}} },
		"no socket":   func(s *machines.Spec) { s.NICs = []machines.NIC{{MAC: nic.MAC}} },
	} {
		t.Run(name, func(t *testing.T) {
			s := Spec("web")
			change(&s)
			wantCode(t, w.Start(t.Context(), s, nil), machines.MachineInvalid)
			w.wantList()
		})
	}
	greedy := Spec("web")
	greedy.Memory = 2 << 40
	wantCode(t, w.Start(t.Context(), greedy, nil), machines.MemoryShort)
	w.wantList()
	w.boot("web") // nothing is in the way
}

// severalAtOnce does everything with five machines at the same time.
func severalAtOnce(t *testing.T, w *world) {
	var all sync.WaitGroup
	names := []string{"m1", "m2", "m3", "m4", "m5"}
	for _, name := range names {
		all.Go(func() {
			if err := w.Start(t.Context(), Spec(name), nil); err != nil {
				t.Error(err)
				return
			}
			for _, err := range []error{
				w.Continue(t.Context(), first, id(name)), w.Pause(t.Context(), first, id(name)), w.Start(t.Context(), Spec(name), nil),
				second(w.List(t.Context())), second(w.Status(t.Context(), id(name))), w.Continue(t.Context(), first, ids(names[:1])...),
			} {
				if err != nil && machines.CodeOf(err) != machines.MachineUnknown { // the first may not be there yet
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	w.wantList(names...)
	for _, name := range names {
		all.Go(func() {
			if err := w.Kill(t.Context(), first, id(name)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	w.wantList()
}

func pauseTogether(t *testing.T, w *world) {
	web, app, db := w.boot("web"), w.boot("app"), w.boot("db")
	wantCode(t, w.Pause(t.Context(), first, id("web"), id("lost"), id("app")), machines.MachineUnknown)
	for _, g := range []*Guest{web, app, db} {
		g.Ask("c")
	}
	w.pause("web", "app")
	w.wantState("web", machines.Paused)
	w.wantState("app", machines.Paused)
	web.Type("c")
	app.Type("c")
	// Time passes for the third only.
	for began := db.Ask("c").Count; db.Ask("c").Count < began+3; {
	}
	if web.Heard()+app.Heard() != 0 {
		t.Error("a paused machine spoke")
	}
	w.proceed("web", "app", "db")
	web.Answer("c")
	app.Answer("c")
}

func processDies(t *testing.T, w *world) {
	w.boot("web")
	seen := w.watch()
	w.host.KillProcess(t, w.status("web").PID)
	if s := await(t, seen, ended("web")); s.End != machines.EndCrashed || s.Text == "" {
		t.Errorf("%+v", s)
	}
	if s := w.wantState("web", machines.Ended); s.End != machines.EndCrashed || s.Text == "" || s.Owner != "order-web" {
		t.Errorf("%+v", s)
	}
	if n := w.host.Processes(t); n != 0 {
		t.Errorf("%d processes", n)
	}
	g2 := Join(t, w, id("web"))
	g2.Await("ready") // what it said last
	if _, more := <-g2.lines; more {
		t.Error("an ended machine speaks")
	}
	wantCode(t, w.Continue(t.Context(), first, id("web")), machines.MachineFailed)
	wantCode(t, w.Pause(t.Context(), first, id("web")), machines.MachineFailed)
	wantCode(t, second(w.Screenshot(t.Context(), id("web"))), machines.MachineFailed)
	wantCode(t, w.Stop(t.Context(), first, id("web")), machines.MachineFailed)
	w.wantList("web")
	// It may be started again without Kill, also with another specification.
	other := Spec("web")
	other.Memory *= 2
	w.start(other, nil)
	w.proceed("web")
	g := Join(t, w, id("web"))
	g.Await("ready") // of the first life
	g.Await("ready")
	g.Ask("c")
}

func guestEnds(t *testing.T, w *world) {
	seen := w.watch()
	w.boot("web").Type("s")
	if s := await(t, seen, ended("web")); s.End != machines.EndGuest {
		t.Errorf("%+v", s)
	}
	for range 2 { // it has ended, and that is what Stop is for
		if err := w.Stop(t.Context(), first, id("web")); err != nil {
			t.Error(err)
		}
	}
	if n := w.host.Processes(t); n != 0 {
		t.Errorf("%d processes", n)
	}
	w.boot("app").Type("p")
	if s := await(t, seen, ended("app")); s.End != machines.EndCrashed || !strings.Contains(s.Text, "panic") {
		t.Errorf("%+v", s)
	}
}

func stop(t *testing.T, w *world) {
	g := w.boot("web")
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	wantCode(t, w.Stop(short, first, id("web")), machines.StopTimedOut) // it does not heed the button
	w.wantState("web", machines.Running)
	g.Ask("a")
	if err := w.Stop(t.Context(), first, id("web")); err != nil {
		t.Fatal(err)
	}
	if s := w.wantState("web", machines.Ended); s.End != machines.EndGuest {
		t.Errorf("%+v", s)
	}
}

func consoles(t *testing.T, w *world) {
	g, other := w.boot("web"), Join(t, w, id("web"))
	idle, err := w.Console(t.Context(), id("web")) // and never reads
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	other.Await("ready")
	g.Type("f")
	const last = "f 00001fff"
	for _, g := range []*Guest{g, other} {
		g.Await(last)
	}
	late, err := w.Console(t.Context(), id("web"))
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	history := make([]byte, machines.ConsoleHistory)
	if _, err := io.ReadFull(late, history); err != nil {
		t.Fatal(err)
	}
	if end := strings.TrimSuffix(string(history), "\n"); !strings.Contains(end[len(end)-30:], last) {
		t.Errorf("the history ends with %q", end[len(end)-30:])
	}
	if err := other.conn.Close(); err != nil {
		t.Error(err)
	}
	for range other.lines {
	}
	if _, err := other.conn.Write([]byte("c")); err == nil {
		t.Error("who has left types on")
	}
	g.Ask("c")
	// The history outlives the agent, and the process.
	w.reopen()
	Join(t, w, id("web")).Await(last)
}

func screen(t *testing.T, w *world) {
	w.boot("web")
	w.start(Spec("app"), nil) // never ran
	for _, name := range []string{"web", "app"} {
		b, err := w.Screenshot(t.Context(), id(name))
		if err != nil {
			t.Fatal(err)
		}
		if img, err := png.Decode(bytes.NewReader(b)); err != nil || img.Bounds().Dx() < 320 {
			t.Errorf("%s: %v", name, err)
		}
		for range 2 { // one after the other
			c, err := w.Display(t.Context(), id(name))
			if err != nil {
				t.Fatal(err)
			}
			hello := make([]byte, 12)
			if _, err := io.ReadFull(c, hello); err != nil || string(hello) != "RFB 003.008\n" {
				t.Errorf("%q, %v", hello, err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

func diskFails(t *testing.T, w *world) {
	g := w.boot("web")
	w.disks.Of(id("web")).Fail(errors.New("the platter is gone"))
	g.Type("w")
	g.Await("e ")
	g.Type("r")
	g.Await("e ")
	w.disks.Of(id("web")).Fail(nil)
	a := g.Ask("w")
	if stored, _ := w.disks.Of(id("web")).Stored(); stored != a {
		t.Errorf("%+v, %+v", stored, a)
	}
	w.wantState("web", machines.Running)
}

func networkSocket(t *testing.T, w *world) {
	s := Spec("web")
	s.NICs = []machines.NIC{{MAC: "52:54:00:12:34:56", Socket: w.host.Socket(t)}, {MAC: "52:54:00:12:34:57", Socket: w.host.Socket(t)}}
	w.start(s, nil)
	w.proceed("web")
	g := Join(t, w, s.ID)
	g.Await("ready")
	for _, n := range s.NICs {
		info, err := os.Lstat(n.Socket)
		if err != nil || info.Mode() != os.ModeSocket|0o600 {
			t.Fatalf("%v, %v", info, err)
		}
		for range 3 { // the network comes again after it went
			c, err := net.Dial("unix", n.Socket)
			if err != nil {
				t.Fatal(err)
			}
			frame := append([]byte{0, 0, 0, 60}, make([]byte, 60)...)
			if _, err := c.Write(append(frame, frame...)); err != nil {
				t.Error(err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
	}
	g.Ask("c")
	w.kill("web")
	for _, n := range s.NICs {
		if _, err := os.Lstat(n.Socket); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is left: %v", err)
		}
	}
}

func cancelled(t *testing.T, w *world) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Start(ctx, Spec("web"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("start: %v", err)
	}
	w.wantList()
	g := w.boot("web")
	for name, err := range map[string]error{
		"continue": w.Continue(ctx, first, id("web")), "pause": w.Pause(ctx, first, id("web")), "kill": w.Kill(ctx, first, id("web")),
		"capture": second(w.Capture(ctx, first, id("web"))), "screenshot": second(w.Screenshot(ctx, id("web"))),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	g.Ask("c")
	w.wantState("web", machines.Running)
}
