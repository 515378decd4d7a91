package region

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/projections"
)

// receivingAgent is an agent that waits for one disk of each environment.
type receivingAgent struct {
	*Agent
	t   *testing.T
	mux *http.ServeMux
}

const uploadBytes = 128 << 10

func receivingFor(t *testing.T, environments ...events.EnvironmentID) receivingAgent {
	t.Helper()
	a := storeOf(t, t.TempDir())
	t.Cleanup(func() { closeStore(t, a) })
	a.nudge = make(chan struct{}, 1)
	a.cfg.Authorize = func(r *http.Request, _ *projections.Feed, _ events.EnvironmentID) (events.AccountID, error) {
		return events.AccountID(r.Header.Get("Authorization")), nil
	}
	j := follow(t, a)
	for _, id := range environments {
		disks := []events.DiskWanted{{Name: "web/root", Bytes: uploadBytes}}
		operation := events.OperationID("operation-" + id)
		j.put(events.Aggregate{Account: "acme", Region: "sydney", Kind: events.KindEnvironment, ID: string(id)}, events.Head{},
			events.EnvironmentDeclared{Name: string(id), Display: string(id), Graph: events.DigestOf([]byte(id)), Operation: operation, Disks: disks})
		j.put(work.Ref{Region: "sydney", Work: workOf(id)}.Aggregate("acme"), events.Head{},
			events.WorkOrdered{Kind: events.WorkReceive, Operation: operation, Order: events.Order{Environment: id, Disks: disks}})
	}
	r := receivingAgent{Agent: a, t: t}
	r.restart()
	return r
}

func workOf(id events.EnvironmentID) events.WorkID { return events.WorkID("work-" + id) }

// restart is the agent starting again, as far as uploads go.
func (a *receivingAgent) restart() {
	a.uploads, a.mux = newUploads(a.Agent), http.NewServeMux()
	a.uploads.register(a.mux)
}

// send gives the status and the code of the answer.
func (a *receivingAgent) send(method, path string, header http.Header, body io.Reader) (int, string) {
	a.t.Helper()
	r := httptest.NewRequest(method, "/v1/uploads/"+path, body)
	r.Header = http.Header{"Authorization": {"acme"}}
	for k, v := range header {
		r.Header[k] = v
	}
	w := httptest.NewRecorder()
	a.mux.ServeHTTP(w, r)
	var p problem
	if w.Code >= 300 {
		if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
			a.t.Fatal(err)
		}
	}
	return w.Code, p.Code
}

func (a *receivingAgent) put(environment string, first int, body io.Reader, n int) (int, string) {
	a.t.Helper()
	return a.send("PUT", environment+"/web/root", http.Header{"Content-Range": {fmt.Sprintf("bytes %d-%d/%d", first, first+n-1, uploadBytes)}}, body)
}

func (a *receivingAgent) finish(environment string) {
	a.t.Helper()
	if status, code := a.send("POST", environment+"/web/root/complete", nil, nil); status != http.StatusNoContent {
		a.t.Fatalf("complete: %d %s", status, code)
	}
}

// late is a body whose first part is followed by what happens meanwhile, and
// then by the rest.
type late struct {
	first, rest io.Reader
	meanwhile   func()
}

func (l *late) Read(p []byte) (int, error) {
	if n, err := l.first.Read(p); err == nil {
		return n, nil
	}
	if l.meanwhile != nil {
		l.meanwhile()
		l.meanwhile = nil
	}
	return l.rest.Read(p)
}

// TestALateRangeChangesNothing: from the moment that a disk is complete it is
// taken in; no range is written any more, neither one that was under way, nor
// one that comes later, also to an agent that has started again.
func TestALateRangeChangesNothing(t *testing.T) {
	a := receivingFor(t, "shop")
	ones, twos := bytes.Repeat([]byte{1}, 64<<10), bytes.Repeat([]byte{2}, 64<<10)
	want := append(bytes.Clone(ones), make([]byte, 64<<10)...)
	staged := func() []byte {
		t.Helper()
		b, err := os.ReadFile(a.uploads.path(workOf("shop"), "web/root"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	refused := func(when string, status int, code string) {
		t.Helper()
		if status != http.StatusConflict || code != "upload-complete" {
			t.Errorf("a range that comes %s is answered with %d %s", when, status, code)
		}
	}
	status, code := a.put("shop", 0, &late{bytes.NewReader(ones), bytes.NewReader(twos), func() { a.finish("shop") }}, uploadBytes)
	refused("while the disk is completed", status, code)
	status, code = a.put("shop", 0, bytes.NewReader(twos), len(twos))
	refused("after", status, code)
	a.restart()
	status, code = a.put("shop", 0, bytes.NewReader(twos), len(twos))
	refused("after a restart", status, code)
	if !bytes.Equal(staged(), want) {
		t.Error("what is taken in has changed")
	}

	// The environment is made, and its staging is gone; the journal does not say so yet.
	if err := os.MkdirAll(a.environmentPath("shop"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(a.environmentPath("shop", "order"), []byte(workOf("shop")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.uploads.drop(workOf("shop")); err != nil {
		t.Fatal(err)
	}
	a.restart()
	status, code = a.put("shop", 0, bytes.NewReader(twos), len(twos))
	refused("once the environment is made", status, code)
	a.finish("shop") // asked again, it is done
	if left, err := filepath.Glob(filepath.Join(a.cfg.Dir, "uploads", "*")); err != nil || len(left) > 0 {
		t.Errorf("a late range has left %v (%v)", left, err)
	}
}

// TestUploadsFindTheirOrder: each range gets to the order of its own
// environment, and only from its account.
func TestUploadsFindTheirOrder(t *testing.T) {
	a := receivingFor(t, "shop", "site")
	for i, id := range []events.EnvironmentID{"shop", "site"} {
		content := bytes.Repeat([]byte{byte(i + 1)}, uploadBytes)
		if status, code := a.put(string(id), 0, bytes.NewReader(content), uploadBytes); status != http.StatusNoContent {
			t.Fatalf("%s: %d %s", id, status, code)
		}
		if b, err := os.ReadFile(a.uploads.path(workOf(id), "web/root")); err != nil || !bytes.Equal(b, content) {
			t.Errorf("%s did not get its disk: %v", id, err)
		}
	}
	if status, code := a.send("POST", "shop/db/root/complete", nil, nil); status != http.StatusNotFound || code != "disk-unknown" {
		t.Errorf("a disk that there is not: %d %s", status, code)
	}
	v, err := a.feed.Now("environments", "work-orders")
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for _, c := range []struct {
		environment events.EnvironmentID
		account     events.AccountID
		want        events.WorkID
	}{{"shop", "acme", "work-shop"}, {"shop", events.None, "work-shop"}, {"shop", "globex", ""}, {"nowhere", "acme", ""}} {
		if got, err := a.uploads.receiving(v, c.environment, c.account); got != c.want || err != nil {
			t.Errorf("%s for account %s: %q, %v", c.environment, c.account, got, err)
		}
	}
}
