package machinestest

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// ram reads a capture's memory as it would be stored: only its extents, all else zeros.
func ram(t testing.TB, c *machines.Capture, size int64) []byte {
	t.Helper()
	all := make([]byte, size)
	for _, e := range c.Extents {
		if n, err := c.RAM.ReadAt(all[e.Offset:e.Offset+e.Length], e.Offset); int64(n) < e.Length {
			t.Fatalf("%d of %d bytes of RAM: %v", n, e.Length, err)
		}
	}
	if c.Extents == nil {
		if n, err := c.RAM.ReadAt(all, 0); int64(n) < size {
			t.Fatalf("%d of %d bytes of RAM: %v", n, size, err)
		}
	}
	return all
}

// goesOn checks that a guest is the one that was saved with this answer: its mark is there, and it counted on from there.
func goesOn(t testing.TB, g *Guest, saved Answer) {
	t.Helper()
	if a := g.Ask("c"); a.Mark != saved.Mark || a.Count < saved.Count || a.Count > saved.Count+18*30 {
		t.Errorf("saved at %+v, now %+v", saved, a)
	}
}

func saveAndResume(t *testing.T, w *world) {
	g := w.boot("web")
	g.Ask("mQ")
	_, err := w.Capture(t.Context(), first, id("web"))
	wantCode(t, err, machines.MachineNotPaused)
	saved := g.Ask("w")
	w.pause("web")
	c := w.capture("web")
	content := ram(t, c, 32<<20)
	var data int64
	for _, e := range c.Extents {
		data += e.Length
	}
	if data >= 32<<20 {
		t.Error("no memory is free though nearly all of it is zeros")
	}
	again := w.capture("web")
	if !bytes.Equal(ram(t, again, 32<<20), content) || !bytes.Equal(again.Devices, c.Devices) {
		t.Error("taken again it is something else")
	}
	w.reopen() // an agent between
	again = w.capture("web")
	if !bytes.Equal(ram(t, again, 32<<20), content) {
		t.Error("taken by another agent it is something else")
	}
	w.kill("web")
	// From what was stored: a reader, with the extents and without.
	for _, extents := range [][]machines.Extent{c.Extents, nil} {
		m := machines.Memory{Hardware: c.Hardware, RAM: bytes.NewReader(content), Extents: extents, Devices: slices.Clone(c.Devices)}
		w.start(Spec("web"), &m)
		w.wantState("web", machines.Paused)
		g = Join(t, w, id("web"))
		if extents == nil { // saved and resumed once more before it ran
			c := w.capture("web")
			w.kill("web")
			w.start(Spec("web"), &c.Memory)
			g = Join(t, w, id("web"))
		}
		w.proceed("web")
		goesOn(t, g, saved)
		if a := g.Ask("r"); a != saved {
			t.Errorf("the disk has %+v, not %+v", a, saved)
		}
		a := g.Ask("w")
		if stored, _ := w.disks.Of(id("web")).Stored(); stored != a {
			t.Errorf("the disk has %+v, not %+v", stored, a)
		}
		saved.Count = min(saved.Count, a.Count)
		w.disks.Of(id("web")).restore(saved)
		w.kill("web")
	}
	// A machine that never ran.
	w.start(Spec("app"), nil)
	c = w.capture("app")
	w.kill("app")
	w.start(Spec("app"), &c.Memory)
	w.proceed("app")
	Join(t, w, id("app")).Await("ready")
}

// saveAndGoOn is a save of running machines: they go on, and the copies start from that moment.
func saveAndGoOn(t *testing.T, w *world) {
	names := []string{"web", "app", "db"}
	var guests []*Guest
	var saved []Answer
	for i, n := range names {
		g := w.boot(n)
		saved = append(saved, g.Ask("m"+string(rune('A'+i))))
		guests = append(guests, g)
	}
	w.pause(names...)
	var copies []*machines.Capture
	for _, n := range names {
		copies = append(copies, w.capture(n))
		w.disks.Clone(id(n), id(n+"-copy"))
	}
	w.proceed(names...)
	for i, g := range guests {
		goesOn(t, g, saved[i])
		g.Ask("m-")
		g.Ask("w")
	}
	for i, n := range names {
		w.start(Spec(n+"-copy"), &copies[i].Memory)
		w.proceed(n + "-copy")
		goesOn(t, Join(t, w, id(n+"-copy")), saved[i])
	}
	for _, g := range guests {
		if a := g.Ask("c"); a.Mark != '-' {
			t.Errorf("%+v", a)
		}
	}
	// And once more.
	w.pause("web")
	c := w.capture("web")
	w.kill("web")
	w.start(Spec("web"), &c.Memory)
	w.proceed("web")
	if a := Join(t, w, id("web")).Ask("r"); a.Mark != '-' {
		t.Errorf("%+v", a)
	}
}

func memoryRefused(t *testing.T, w *world) {
	w.boot("web")
	w.pause("web")
	c := w.capture("web")
	content := ram(t, c, 32<<20)
	w.kill("web")
	for name, change := range map[string]func(*machines.Memory){
		"accelerator": func(m *machines.Memory) { m.Hardware.Accelerator = "other" },
		"machine":     func(m *machines.Memory) { m.Hardware.Machine = "pc-1.0" },
		"processor":   func(m *machines.Memory) { m.Hardware.CPU = "486" },
		"newer":       func(m *machines.Memory) { m.Hardware.Emulator = "99.1.0" },
		"extents":     func(m *machines.Memory) { m.Extents = []machines.Extent{{Offset: 32<<20 - 1, Length: 2}} },
		"order": func(m *machines.Memory) {
			m.Extents = []machines.Extent{{Offset: 4096, Length: 2}, {Offset: 0, Length: 2}}
		},
		"no RAM":     func(m *machines.Memory) { m.RAM = nil },
		"no devices": func(m *machines.Memory) { m.Devices = nil },
		"garbage":    func(m *machines.Memory) { m.Devices = bytes.Repeat([]byte("garbage"), 100) },
		"cut":        func(m *machines.Memory) { m.Devices = m.Devices[:len(m.Devices)/2] },
	} {
		t.Run(name, func(t *testing.T) {
			m := c.Memory
			change(&m)
			wantCode(t, w.Start(t.Context(), Spec("web"), &m), machines.MemoryIncompatible)
			w.wantList()
		})
	}
	t.Run("unreadable", func(t *testing.T) {
		m := c.Memory
		m.RAM, m.Extents = bytes.NewReader(content[:1<<20]), nil
		wantCode(t, w.Start(t.Context(), Spec("web"), &m), machines.MachineFailed)
		w.wantList()
	})
	t.Run("other size", func(t *testing.T) {
		m, s := c.Memory, Spec("web")
		s.Memory *= 2
		m.RAM = io.NewSectionReader(io.NewSectionReader(bytes.NewReader(append(content, content...)), 0, 64<<20), 0, 64<<20)
		wantCode(t, w.Start(t.Context(), s, &m), machines.MemoryIncompatible)
		w.wantList()
	})
	// An older emulator's memory goes on.
	m := c.Memory
	m.Hardware.Emulator = "1.0"
	w.start(Spec("web"), &m)
	w.proceed("web")
	Join(t, w, id("web")).Ask("c")
}

func adopt(t *testing.T, w *world) {
	web, app := w.boot("web"), w.boot("app")
	web.Ask("mQ")
	app.Ask("mP")
	w.pause("app")
	before := w.status("web")
	w.reopen()
	w.wantList("app", "web")
	if s := w.wantState("web", machines.Running); s.PID != before.PID || !s.Started.Equal(before.Started) || s.Owner != before.Owner {
		t.Errorf("%+v, %+v", before, s)
	}
	w.wantState("app", machines.Paused)
	web, app = Join(t, w, id("web")), Join(t, w, id("app"))
	web.Await("ready")
	web.Await("m ")
	// While its disk is not served the guest waits, and sees no error.
	web.Type("w")
	for range 2 {
		if err := w.Adopt(t.Context(), first); err != nil {
			t.Fatal(err)
		}
	}
	a := web.Answer("w")
	if stored, _ := w.disks.Of(id("web")).Stored(); stored != a || a.Mark != 'Q' {
		t.Errorf("%+v, %+v", stored, a)
	}
	w.proceed("app")
	if a := app.Ask("c"); a.Mark != 'P' {
		t.Errorf("%+v", a)
	}
	app.Ask("w")
	// What the new agent starts, ends and saves is as before.
	w.pause("app")
	c := w.capture("app")
	w.kill("app")
	w.start(Spec("app"), &c.Memory)
	w.proceed("app")
	if a := Join(t, w, id("app")).Ask("r"); a.Mark != 'P' {
		t.Errorf("%+v", a)
	}
	wantCode(t, w.Start(t.Context(), machines.Spec{ID: id("web"), Owner: "o", Epoch: first, CPUs: 2, Memory: 32 << 20}, nil), machines.MachineExists)
	web.Ask("c")
}

func endsWhileAway(t *testing.T, w *world) {
	w.boot("web")
	w.boot("app").Type("s")
	w.boot("db")
	w.pause("db")
	web, db := w.status("web"), w.status("db")
	w.close()
	w.host.KillProcess(t, web.PID)
	w.host.KillProcess(t, db.PID)
	w.Driver = w.host.Open(t, w.disks.Device)
	// One that switches itself off flushes its disks first.
	if err := w.Adopt(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	seen := w.watch()
	for name, end := range map[string]machines.End{"web": machines.EndCrashed, "app": machines.EndGuest, "db": machines.EndCrashed} {
		if s := await(t, w.watch(), ended(name)); s.End != end || s.Owner != "order-"+name {
			t.Errorf("%+v", s)
		}
	}
	if n := w.host.Processes(t); n != 0 {
		t.Errorf("%d processes", n)
	}
	w.wantList("app", "db", "web")
	await(t, seen, ended("web")) // who has been told this is watching
	w.kill("web")
	if s := await(t, seen, func(s machines.Status) bool { return s.End == machines.EndKilled }); s.ID != id("web") {
		t.Errorf("%+v", s)
	}
}

func epoch(t *testing.T, w *world) {
	s := Spec("web")
	s.Epoch = 5
	w.start(s, nil)
	late := func() {
		t.Helper()
		old := Spec("app")
		old.Epoch = 4
		ctx := context.Background()
		for name, err := range map[string]error{
			"start": w.Start(ctx, old, nil), "adopt": w.Adopt(ctx, 4), "continue": w.Continue(ctx, 4, s.ID), "pause": w.Pause(ctx, 4, s.ID),
			"capture": second(w.Capture(ctx, 4, s.ID)), "stop": w.Stop(ctx, 4, s.ID), "kill": w.Kill(ctx, 4, s.ID),
		} {
			t.Run(name, func(t *testing.T) { wantCode(t, err, machines.StaleEpoch) })
		}
	}
	late()
	w.reopen()
	late()
	if err := w.Continue(t.Context(), 6, s.ID); err != nil {
		t.Fatal(err)
	}
	wantCode(t, w.Pause(t.Context(), 5, s.ID), machines.StaleEpoch)
	w.wantState("web", machines.Running)
	w.wantList("web")
}

// forgotten is a process that the driver knows nothing about but what the process itself shows.
func forgotten(t *testing.T, w *world) {
	for _, restarted := range []bool{true, false} {
		w.boot("web")
		pid := w.status("web").PID
		if restarted {
			w.close()
			w.host.Forget(t, id("web"))
			w.Driver = w.host.Open(t, w.disks.Device)
		} else {
			w.host.Forget(t, id("web"))
		}
		list, err := w.List(t.Context())
		if err != nil || len(list) != 1 || list[0].ID != id("web") || list[0].Owner != "order-web" || list[0].Epoch != first || list[0].PID != pid || list[0].State == machines.Ended {
			t.Fatalf("%+v, %v", list, err)
		}
		w.kill("web")
		w.wantList()
		if n := w.host.Processes(t); n != 0 {
			t.Fatalf("%d processes", n)
		}
	}
	// Start takes the place of one that nobody knows.
	w.boot("web")
	w.close()
	w.host.Forget(t, id("web"))
	w.Driver = w.host.Open(t, w.disks.Device)
	g := w.boot("web")
	if n := w.host.Processes(t); n != 1 {
		t.Errorf("%d processes", n)
	}
	if a := g.Ask("c"); strings.ContainsRune("Q", rune(a.Mark)) {
		t.Errorf("%+v", a)
	}
}

// restore is what a save of the disk would bring back.
func (d *Disk) restore(a Answer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.bytes[512:], []byte{byte(a.Count), byte(a.Count >> 8), byte(a.Count >> 16), byte(a.Count >> 24), a.Mark})
}
