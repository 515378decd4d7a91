//go:build soak

// The matrix is run by `go test -tags soak ./testenv -run FailureMatrix`: which
// of two writers appends first decides whether every single step is hit, and a
// run that misses one fails.

package testenv

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region"
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

// TestFailureMatrix: capability 100: an environment is made, saved and copied,
// replaced, a replacement is cancelled, everything is deleted; and in each of
// these phases every change that an agent makes, every command that it sends and
// every event that the control plane appends ends its process once before it and
// once after it. In the end everything is finished or as before.
func TestFailureMatrix(t *testing.T) {
	t.Parallel()
	kind := ending{t.TempDir()}
	w := New(t, kind, Options{Regions: []string{"beijing", "sydney"}, Timeout: 5 * time.Minute})
	processes := append(w.Regions(), "server")
	arm := func(phase string) {
		t.Helper()
		for _, p := range processes {
			if err := kind.dir(p).Arm(phase); err != nil {
				t.Fatal(err)
			}
		}
	}
	arm("")
	stop := w.Supervise()
	defer stop()
	start := time.Now()
	rest := func(phase string) {
		t.Helper()
		arm("")
		w.Rest()
		w.Clean()
		t.Logf("%s: %s", phase, time.Since(start).Round(100*time.Millisecond))
	}

	arm("setup")
	w.Pools(8)
	manage(t, w)
	rest("setup")
	arm("create")
	env := w.Create("shop", "beijing", Disk(1, 512<<10))
	rest("create")
	arm("save")
	number, operation := w.Save(env, "Shop", "beijing", "sydney")
	w.Done(operation)
	rest("save")
	w.Verified(number, 1, "beijing", "sydney")

	w.Region("beijing").WriteDisk(env, "web/root", Disk(2, 128<<10), 0)
	arm("replace")
	w.Done(w.Replace(number, env))
	rest("replace")
	w.Verified(number, 2, "beijing", "sydney")

	arm("instantiate")
	var clone accepted
	if err := w.Client().Do(w.Context(), "POST", "/v1/templates/"+number+"/instantiate", map[string]any{"region": "sydney", "name": "clone"}, &clone); err != nil {
		t.Fatal(err)
	}
	w.Done(clone.Operation)
	rest("instantiate")
	var made struct{ Environment string }
	if err := w.Client().Get(w.Context(), "/v1/environments/clone/origin", &made); err != nil {
		t.Fatal(err)
	}

	arm("reshape")
	w.must("POST", "/v1/environments/"+env+"/power", map[string]string{"power": "suspended"})
	w.must("POST", "/v1/templates/"+number+"/protect", map[string]bool{"protected": true})
	w.must("POST", "/v1/templates/"+number+"/protect", map[string]bool{"protected": false})
	w.Done(w.must("POST", "/v1/templates/"+number+"/regions", map[string]any{"remove": []string{"sydney"}}).Operation)
	rest("reshape, away")
	w.Verified(number, 2, "beijing")
	arm("reshape")
	w.Done(w.must("POST", "/v1/templates/"+number+"/regions", map[string]any{"add": []string{"sydney"}}).Operation)
	rest("reshape, back")
	w.Verified(number, 2, "beijing", "sydney")

	// A replacement that cannot finish, because no chunk comes through, is
	// cancelled, after the one that waits behind it.
	w.Region("beijing").WriteDisk(env, "web/root", Disk(3, 128<<10), 0)
	w.Region("beijing").Transfer.Black()
	operation = w.Replace(number, env)
	w.Until(number, "version 3 is not saved", func(at Where) bool {
		return slices.ContainsFunc(at.Regions, func(r WhereRegion) bool { return r.Version == 3 && r.Region == "beijing" && r.Verified })
	})
	arm("cancel")
	for _, o := range []string{w.Replace(number, env), operation} {
		w.must("POST", "/v1/operations/"+o+"/cancel", struct{}{})
		got, err := w.Client().Finished(w.Context(), o)
		if err != nil || got.State != "cancelled" {
			t.Errorf("the cancelled replacement: %v: %s", err, JSON(got))
		}
	}
	w.Region("beijing").Transfer.Heal()
	rest("cancel")
	w.Verified(number, 2, "beijing", "sydney")

	arm("delete")
	for _, path := range []string{"/v1/templates/" + number, "/v1/environments/" + env, "/v1/environments/" + made.Environment} {
		w.Done(w.must("DELETE", path, struct{}{}).Operation)
	}
	rest("delete")
	for _, r := range w.Regions() {
		if p := w.PoolOf(r); p.Free != p.Size {
			t.Errorf("nothing is left, and yet addresses of %s are held: %+v", r, p)
		}
	}
	stop()
	covered(t, kind, processes)
}

// manage does what administrators do.
func manage(t *testing.T, w *World) {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	w.must("POST", "/v1/accounts", map[string]string{"account": "acme", "display": "Acme"})
	w.must("POST", "/v1/accounts/acme/users", map[string]any{"user": "ann", "role": "reader", "nkey": public, "token": events.DigestOf([]byte(public))})
	w.must("DELETE", "/v1/accounts/acme/users/ann", struct{}{})
	w.must("POST", "/v1/regions", map[string]any{"region": "chicago", "profile": map[string]any{"name": "Chicago", "latitude": 41.88, "longitude": -87.63}})
	w.must("POST", "/v1/regions/chicago/takeover", map[string]string{"agent": "another"})
	w.must("POST", "/v1/regions/chicago/drain", struct{}{})
	w.must("POST", "/v1/regions/chicago/retire", struct{}{})
	w.must("POST", "/v1/pools/sydney/public-address/leases", map[string]string{"for": "default", "note": "by hand"})
	var pool struct {
		Leases []struct {
			ID string `json:"id"`
		} `json:"leases"`
	}
	if err := w.Client().Get(w.Context(), "/v1/pools/sydney/public-address", &pool); err != nil || len(pool.Leases) != 1 {
		t.Fatalf("the lease made by hand: %v %v", pool, err)
	}
	w.must("DELETE", "/v1/pools/sydney/public-address/leases/"+pool.Leases[0].ID, struct{}{})
}

// covered demands that every step has ended a process.
func covered(t *testing.T, kind ending, processes []string) {
	t.Helper()
	hit := map[string]int{}
	for _, p := range processes {
		spent, err := kind.dir(p).Spent()
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range spent {
			_, step, _ := strings.Cut(s, "/")
			hit[step]++
		}
	}
	total := 0
	for _, n := range hit {
		total += n
	}
	t.Logf("%d steps ended a process, %d times in all", len(hit), total)
	reasons := unreached()
	for _, change := range changes(t) {
		why, excused := reasons[change]
		for _, step := range []string{faults.Before(change), faults.After(change)} {
			if hit[step] == 0 && !excused {
				t.Errorf("no run has ended at %s: extend the scenario, or say in unreached why it cannot be", step)
			}
			if hit[step] > 0 && excused {
				t.Errorf("%s is reached, though it is said not to be: %s", step, why)
			}
		}
		delete(reasons, change)
	}
	for change := range reasons {
		t.Errorf("unreached names %s, which there is not", change)
	}
}

// changes lists what can be ended at, from the code.
func changes(t *testing.T) []string {
	t.Helper()
	out := []string{"documents.Put"}
	for _, port := range []struct {
		name string
		of   reflect.Type
	}{{"store", reflect.TypeFor[chunks.Writer]()}, {"session", reflect.TypeFor[chunks.Session]()}} {
		for i := range port.of.NumMethod() {
			out = append(out, port.name+"."+port.of.Method(i).Name)
		}
	}
	for _, c := range region.Changes() {
		out = append(out, "host."+string(c))
	}
	for _, verb := range verbs(t) {
		out = append(out, "command."+verb)
	}
	for _, d := range events.NewRegistry().Definitions() {
		out = append(out, "append."+string(d.Type))
	}
	return out
}

// verbs reads from the agent's source which commands it sends.
func verbs(t *testing.T) []string {
	t.Helper()
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	files, err := filepath.Glob(filepath.Join(root, "handlers", "region", "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			s, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || s.Sel.Name != "command" && s.Sel.Name != "Command" {
				return true
			}
			for _, a := range call.Args {
				if l, ok := a.(*ast.BasicLit); ok && l.Kind == token.STRING {
					if verb, err := strconv.Unquote(l.Value); err == nil {
						found[verb] = true
					}
				}
			}
			return true
		})
	}
	if len(found) < 5 {
		t.Fatalf("the agent's commands are not found: %v", found)
	}
	return slices.Sorted(maps.Keys(found))
}

// unreached says of each change that this scenario does not make why not.
func unreached() map[string]string {
	const fails, damaged = "nothing fails for good here", "no chunk is damaged here"
	return map[string]string{
		"store.Quarantine":             damaged,
		"append.instance.copy-damaged": damaged,
		"command.report-damaged":       damaged,
		"command.report-failed":        fails,
		"command.report-stuck":         fails,
		"append.work.failed":           fails,
		"append.work.stuck":            fails,
		"append.work.retried":          fails,
		"append.work.written-off":      fails,
		"append.instance.copy-failed":  fails,
		"append.instance.copy-retried": fails,
		"append.operation.retry-asked": fails,
		"append.environment.failed":    fails,
		"append.instance.copy-waiting": "no pool runs out here",
		"append.instance.copy-kept":    "no region is given a copy it holds on demand",
	}
}
