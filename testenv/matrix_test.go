package testenv

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/testenv/faults"
)

// ending runs this test's own binary as the program, with steps that end it.
type ending struct{ root string }

func (e ending) dir(name string) faults.Dir { return faults.Dir(filepath.Join(e.root, name)) }

// Command is this binary.
func (e ending) Command(name string) (string, []string) {
	return os.Args[0], []string{faults.Env + "=" + string(e.dir(name))}
}

// matrix is a world whose processes are ended, in every phase, once at each step
// that they come to.
type matrix struct {
	*World
	t         *testing.T
	kind      ending // of the processes
	processes []string
	start     time.Time
	scene     string
}

// TestFailureMatrix: capability 100: an environment is made, saved, copied,
// replaced, instantiated and deleted; its template leaves a region and comes
// back, to a pool without stock, to a disk that is full, to a store that is
// damaged; a replacement is cancelled whose undo does not work at first. In each
// of these phases every change that an agent makes, every command that it sends
// and every event that the control plane appends ends its process once before it
// and once after it. In the end everything is finished or as before, nothing has
// happened twice, no host has anything that no order owns, and no lease is lost.
//
// There is a phase at all times, so that whatever happens late ends its process
// all the same: which phase a step falls into depends on who is faster, that it
// ends its process before and after does not.
func TestFailureMatrix(t *testing.T) {
	t.Parallel()
	kind := ending{t.TempDir()}
	w := New(t, kind, Options{Regions: []string{"beijing", "sydney"}, Timeout: 20 * time.Minute})
	m := &matrix{World: w, t: t, kind: kind, processes: append(w.Regions(), "server"), start: time.Now()}
	stop := w.Supervise()
	defer stop()

	m.arm("create", "setup")
	w.Pools(8)
	m.manage()
	m.rest()

	m.arm("create", "create")
	env := w.Create("shop", "beijing", Disk(1, 512<<10))
	m.giveUp()
	m.rest()
	m.leases("beijing", 0, 1)

	m.arm("save", "save")
	number, operation := w.Save(env, "Shop", "beijing", "sydney")
	w.Done(operation)
	m.rest()
	w.Verified(number, 1, "beijing", "sydney")
	m.leases("beijing", 1, 1)
	m.leases("sydney", 1, 0)

	m.write(env, Disk(2, 128<<10))
	m.arm("replace", "replace")
	w.Done(w.Replace(number, env))
	m.rest()
	w.Verified(number, 2, "beijing", "sydney")
	m.leases("beijing", 1, 1)
	m.leases("sydney", 1, 0)

	m.arm("instantiate", "instantiate")
	clones := []string{m.instantiate(number, "clone")}
	m.rest()
	content := Disk(1, 512<<10)
	copy(content, Disk(2, 128<<10))
	m.holds(clones[0], content)

	m.arm("regions", "away")
	w.Done(w.Power(env, "powered-off")) // in a region that runs no machines, it is so
	m.must("POST", "/v1/templates/"+number+"/protect", map[string]bool{"protected": true})
	m.must("POST", "/v1/templates/"+number+"/protect", map[string]bool{"protected": false})
	m.must("POST", "/v1/templates/"+number+"/keep", map[string]int{"keep": 1})
	m.must("POST", "/v1/templates/"+number+"/keep", map[string]int{"keep": 0})
	m.regions(number, "remove", "sydney")
	m.rest()
	w.Verified(number, 2, "beijing")

	m.arm("regions", "back")
	m.backToAFullPool(number)
	m.rest()
	w.Verified(number, 2, "beijing", "sydney")
	m.regions(number, "remove", "sydney")
	m.rest()

	m.arm("regions", "full disk")
	m.backToAFullDisk(number)
	m.rest()
	w.Verified(number, 2, "beijing", "sydney")
	m.regions(number, "remove", "sydney")
	m.rest()

	m.arm("regions", "on demand")
	clones = append(clones, m.instantiate(number, "on-demand"))
	m.regions(number, "add", "sydney")
	m.rest()
	w.Verified(number, 2, "beijing", "sydney")
	m.holds(clones[1], content)

	m.arm("regions", "damage")
	m.damage()
	m.rest()
	w.Verified(number, 2, "beijing", "sydney")
	m.holds(clones[0], content)

	m.write(env, Disk(3, 128<<10))
	m.cancelled(number, env)
	w.Verified(number, 2, "beijing", "sydney")
	m.holds(clones[1], content)

	m.arm("delete", "delete")
	for _, path := range []string{"/v1/templates/" + number, "/v1/environments/" + env, "/v1/environments/" + clones[0], "/v1/environments/" + clones[1]} {
		w.Done(m.must("DELETE", path, struct{}{}).Operation)
	}
	m.rest()
	m.covered(slices.DeleteFunc(changes(t), func(c string) bool { return slices.Contains(ofMachines(), c) }))
	m.arm("", "the end")
	m.rest()
	for _, r := range w.Regions() {
		m.leases(r, 0, 0)
	}
	m.once()
}

// arm begins a scene of a phase: what has ended its process in this phase does
// not end it again.
func (m *matrix) arm(phase, scene string) {
	m.t.Helper()
	m.scene = scene
	for _, p := range m.processes {
		if err := m.kind.dir(p).Arm(phase); err != nil {
			m.t.Fatal(err)
		}
	}
}

// rest waits until the regions have nothing to do, and demands that nothing is
// left over.
func (m *matrix) rest() {
	m.t.Helper()
	m.Rest()
	m.Clean()
	m.t.Logf("%s: %s", m.scene, time.Since(m.start).Round(100*time.Millisecond))
}

// insist tries again until it works: the process asked may just have ended.
func (m *matrix) insist(what string, try func() error) {
	m.t.Helper()
	for {
		err := try()
		if err == nil {
			return
		}
		if pause(m.Context()) != nil {
			m.t.Fatalf("%s: %v", what, err)
		}
	}
}

// must sends a command that has to be accepted.
func (m *matrix) must(method, path string, body any) accepted {
	m.t.Helper()
	var a accepted
	if err := m.Client().Do(m.Context(), method, path, body, &a); err != nil {
		m.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// write changes the beginning of an environment's disk as a machine would.
func (m *matrix) write(env string, data []byte) {
	m.t.Helper()
	m.insist("write to the disk", func() error { return m.Region("beijing").writeDisk(env, "web/root", data, 0) })
}

// holds demands that an environment in sydney has this content.
func (m *matrix) holds(env string, content []byte) {
	m.t.Helper()
	var got []byte
	m.insist("read the disk", func() (err error) {
		got, err = m.Region("sydney").readDisk(env, "web/root")
		return err
	})
	if !bytes.Equal(got, content) {
		m.t.Errorf("the disk of %s holds something else", env)
	}
}

// leases demands that so many addresses of the region's pool are held by
// instances, and so many by environments.
func (m *matrix) leases(region string, reserved, bound int) {
	m.t.Helper()
	if p := m.PoolOf(region); p.Reserved != reserved || p.Bound != bound {
		m.t.Errorf("%s, after %s: %+v; want %d reserved, %d bound", region, m.scene, p, reserved, bound)
	}
}

// manage does what administrators do.
func (m *matrix) manage() {
	m.t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		m.t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		m.t.Fatal(err)
	}
	m.must("POST", "/v1/accounts", map[string]string{"account": "acme", "display": "Acme"})
	m.must("POST", "/v1/accounts/acme/users", map[string]any{"user": "ann", "role": "reader", "nkey": public, "token": events.DigestOf([]byte(public))})
	m.must("DELETE", "/v1/accounts/acme/users/ann", struct{}{})
	m.must("POST", "/v1/regions", map[string]any{"region": "chicago", "profile": map[string]any{"name": "Chicago", "latitude": 41.88, "longitude": -87.63}})
	m.must("POST", "/v1/regions/chicago/takeover", map[string]string{"agent": "another"})
	m.must("POST", "/v1/regions/chicago/drain", struct{}{})
	m.must("POST", "/v1/regions/chicago/retire", struct{}{})
}

// giveUp cancels the making of an environment whose disk never comes.
func (m *matrix) giveUp() {
	m.t.Helper()
	spec := map[string]any{"name": "never", "networks": []any{map[string]any{"name": "lan", "subnet": "10.0.0.0/24"}},
		"machines": []any{map[string]any{"name": "web", "disks": []any{map[string]any{"name": "root", "bytes": 1 << 20}},
			"interfaces": []any{map[string]any{"network": "lan", "address": "10.0.0.2", "public_address": "auto"}}}}}
	made := m.must("POST", "/v1/environments", map[string]any{"region": "beijing", "spec": spec})
	m.Happened(made.Sequence, "work.ordered")
	m.ends(m.cancel(made.Operation), "cancelled")
}

func (m *matrix) cancel(operation string) string {
	m.t.Helper()
	m.must("POST", "/v1/operations/"+operation+"/cancel", struct{}{})
	return operation
}

// ends waits for an operation's end and demands how it ends.
func (m *matrix) ends(operation, state string) {
	m.t.Helper()
	if o, err := m.Client().Finished(m.Context(), operation); err != nil || string(o.State) != state {
		m.t.Fatalf("operation %s: %v; want %s", JSON(o), err, state)
	}
}

// regions adds sydney to the template's regions, or removes it.
func (m *matrix) regions(number, verb, region string) {
	m.t.Helper()
	m.Done(m.must("POST", "/v1/templates/"+number+"/regions", map[string]any{verb: []string{region}}).Operation)
}

// instantiate makes an environment in sydney, copying where that is needed, and
// gives its id.
func (m *matrix) instantiate(number, name string) string {
	m.t.Helper()
	m.Done(m.must("POST", "/v1/templates/"+number+"/instantiate", map[string]any{"region": "sydney", "name": name, "copy_agreed": true}).Operation)
	var made struct{ Environment string }
	if err := m.Client().Get(m.Context(), "/v1/environments/"+name+"/origin", &made); err != nil {
		m.t.Fatal(err)
	}
	return made.Environment
}

// backToAFullPool has sydney hold the template again while all of its addresses
// are given away by hand, and gives them back.
func (m *matrix) backToAFullPool(number string) {
	m.t.Helper()
	const leases = "/v1/pools/sydney/public-address/leases"
	before := m.PoolOf("sydney")
	for range before.Free {
		m.must("POST", leases, map[string]string{"for": "default", "note": "by hand"})
	}
	m.leases("sydney", before.Reserved+before.Free, before.Bound)
	adding := m.must("POST", "/v1/templates/"+number+"/regions", map[string]any{"add": []string{"sydney"}})
	m.Happened(adding.Sequence, "instance.copy-waiting")
	var pool struct {
		Leases []struct{ ID, Account, Instance, Environment string }
	}
	if err := m.Client().Get(m.Context(), "/v1/pools/sydney/public-address", &pool); err != nil {
		m.t.Fatal(err)
	}
	for _, l := range pool.Leases {
		if l.Instance == "" && l.Environment == "" {
			m.must("DELETE", leases+"/"+l.ID, struct{}{})
		}
	}
	m.Done(adding.Operation)
}

// backToAFullDisk has sydney hold the template again while nothing can be
// published in its store. A retry of the order alone fails again, a retry of the
// operation after the disk has room succeeds; the failed order is written off.
func (m *matrix) backToAFullDisk(number string) {
	m.t.Helper()
	m.fail("store.Publish", chunks.StoreFull)
	adding := m.must("POST", "/v1/templates/"+number+"/regions", map[string]any{"add": []string{"sydney"}})
	failed := m.Happened(adding.Sequence, "work.failed")
	m.ends(adding.Operation, "partly-succeeded")
	order := m.trouble("failed")
	again := m.must("POST", "/v1/work/"+order+"/retry", struct{}{})
	m.Happened(max(again.Sequence, failed.Sequence), "work.failed")
	m.mend("store.Publish")
	m.must("POST", "/v1/operations/"+adding.Operation+"/retry", struct{}{})
	// The failure of the order may be told after the retry was asked for, and then
	// looks like one of the retry until the copy is there.
	if o, err := m.Client().Await(m.Context(), adding.Operation, func(o Operation) bool { return o.State == "succeeded" }); err != nil {
		m.t.Fatalf("%v: %s", err, JSON(o))
	}
	m.must("POST", "/v1/work/"+order+"/write-off", map[string]string{"why": "another order has done it"})
}

func (m *matrix) fail(change string, code chunks.Code) {
	m.t.Helper()
	if err := m.kind.dir("sydney").Fail(change, code); err != nil {
		m.t.Fatal(err)
	}
}

func (m *matrix) mend(change string) {
	m.t.Helper()
	if err := m.kind.dir("sydney").Mend(change); err != nil {
		m.t.Fatal(err)
	}
}

// trouble gives the one work order in this state.
func (m *matrix) trouble(state string) string {
	m.t.Helper()
	var all struct {
		Items []struct{ Work, State string }
	}
	if err := m.Client().Get(m.Context(), "/v1/work?state=trouble", &all); err != nil {
		m.t.Fatal(err)
	}
	if len(all.Items) != 1 || all.Items[0].State != state {
		m.t.Fatalf("%s: one %s order is wanted", JSON(all), state)
	}
	return all.Items[0].Work
}

// damage changes a byte of sydney's store, which a scrub then finds and has
// fetched again.
func (m *matrix) damage() {
	m.t.Helper()
	packs, err := filepath.Glob(filepath.Join(m.Region("sydney").Dir, "chunks", "packs", "*.pack"))
	if err != nil || len(packs) == 0 {
		m.t.Fatalf("sydney has no packs: %v", err)
	}
	for _, path := range packs {
		content, err := os.ReadFile(path)
		if err != nil {
			m.t.Fatal(err)
		}
		at := len(content) / 2
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			m.t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{content[at] ^ 1}, int64(at)); err != nil {
			m.t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			m.t.Fatal(err)
		}
	}
	before := m.Position()
	if err := m.Client().Do(m.Context(), "POST", "/v1/regions/sydney/scrub", struct{}{}, nil); err != nil {
		m.t.Fatal(err)
	}
	damaged := m.Happened(before, "instance.copy-damaged")
	m.Happened(damaged.Sequence, "instance.copy-verified")
}

// cancelled cancels a replacement that cannot finish, because no chunk comes
// through, after the one that waits behind it. What the region has of it cannot
// be let go of at first.
func (m *matrix) cancelled(number, env string) {
	m.t.Helper()
	m.Region("beijing").Transfer.Black()
	operation := m.Replace(number, env)
	m.Until(number, "version 3 is not saved", func(at Where) bool {
		return slices.ContainsFunc(at.Regions, func(r WhereRegion) bool { return r.Version == 3 && r.Region == "beijing" && r.Verified })
	})
	m.arm("cancel", "cancel")
	m.ends(m.cancel(m.Replace(number, env)), "cancelled")
	m.fail("store.Release", chunks.StoreWriteFailed)
	before := m.Position()
	m.cancel(operation)
	m.Happened(before, "work.stuck")
	m.mend("store.Release")
	m.must("POST", "/v1/work/"+m.trouble("stuck")+"/retry", struct{}{})
	m.ends(operation, "cancelled")
	m.Region("beijing").Transfer.Heal()
	m.rest()
}
