package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nkeys"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/program"
	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
	"github.com/tombolo-vdc/tombolo/testenv/images"
)

// buildImage makes an ext4 image of some MiB.
func buildImage(ctx context.Context, path string) error {
	spec := images.Spec{Label: "web", Trees: []images.Tree{{Source: "../../handlers", At: "srv/handlers"}, {Source: "../../events", At: "srv/events"}},
		MinBytes: 1 << 20, FreeBytes: 16 << 20}
	_, err := images.Build(ctx, spec, path)
	return err
}

func image(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: image FILE")
	}
	ts.Check(buildImage(context.Background(), ts.MkAbs(args[0])))
}

func deviceURL(dir, at, export string) (string, error) {
	socket, err := nbd.SocketPath(filepath.Join(dir, "regions", at), "nbd.sock")
	return "nbd+unix:///" + url.PathEscape(export) + "?socket=" + socket, err
}

func device(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: device VAR DIR REGION ENV/NODE/DISK")
	}
	u, err := deviceURL(ts.MkAbs(args[1]), args[2], args[3])
	ts.Check(err)
	ts.Setenv(args[0], u)
}

// world is the program in this process, with the command line as people use it.
type world struct {
	t       *testing.T
	dir     string
	context string
	stop    func()
}

func newWorld(t *testing.T, dir string) *world {
	t.Helper()
	p, err := program.New(t.Context(), program.Config{Dir: dir, HTTP: "127.0.0.1:0", NATS: "127.0.0.1:0", Regions: []string{"sydney"}, Lazy: true, Guests: program.Guests{Accelerator: "none"},
		Version: "test", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	if err := p.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, context: p.Addresses().Context}
	w.stop = func() {
		cancel()
		if err := errors.Join(<-ended, p.Close()); err != nil {
			t.Error(err)
		}
		w.stop = func() {}
	}
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) env(name string) string {
	return map[string]string{"TOMBOLO_CONTEXT": w.context, "HOME": w.t.TempDir()}[name]
}

// run demands exit 0 and gives stdout.
func (w *world) run(args ...string) string {
	w.t.Helper()
	var out, talk bytes.Buffer
	if code := execute(w.t.Context(), args, streams{strings.NewReader(""), &out, &talk}, w.env); code != 0 {
		w.t.Fatalf("tombolo %s: exit %d\n%s%s", strings.Join(args, " "), code, out.String(), talk.String())
	}
	return out.String()
}

func (w *world) client() *client {
	w.t.Helper()
	a := &app{streams: streams{strings.NewReader(""), io.Discard, io.Discard}, env: w.env, output: "json", quiet: true}
	c, err := a.ready()
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

// shop makes an environment of one disk and gives its id and the disk's bytes.
func (w *world) shop() (events.EnvironmentID, []byte) {
	w.t.Helper()
	dir := w.t.TempDir()
	disk := filepath.Join(dir, "disk.img")
	if err := buildImage(w.t.Context(), disk); err != nil {
		w.t.Fatal(err)
	}
	spec := "name: Shop\nmachines:\n  - name: web\n    disks: [{name: root, file: disk.img}]\n"
	if err := os.WriteFile(filepath.Join(dir, "shop.yaml"), []byte(spec), 0o600); err != nil {
		w.t.Fatal(err)
	}
	var e struct {
		ID events.EnvironmentID `json:"id"`
	}
	if err := json.Unmarshal([]byte(w.run("env", "create", "-f", filepath.Join(dir, "shop.yaml"), "--region", "sydney", "-q", "-o", "json")), &e); err != nil {
		w.t.Fatal(err)
	}
	b, err := os.ReadFile(disk)
	if err != nil {
		w.t.Fatal(err)
	}
	return e.ID, b
}

func (w *world) readAll(e *exported) []byte {
	w.t.Helper()
	d, err := e.disk(w.t.Context(), e.Disks[0], newMeter(e.at.client.app, "sydney", "downloading"))
	if err != nil {
		w.t.Fatal(err)
	}
	out := make([]byte, d.Size())
	if _, err := io.ReadFull(io.NewSectionReader(d, 0, d.Size()), out); err != nil {
		w.t.Fatal(err)
	}
	return out
}

func (w *world) kept() []string {
	w.t.Helper()
	entries, err := os.ReadDir(filepath.Join(w.dir, "regions", "sydney", "exports"))
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// TestExportStandsStill: what is written after an export was taken is not in it,
// nor does it matter to it that the agent restarts or the environment goes.
func TestExportStandsStill(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir)
	id, before := w.shop()
	first, err := w.client().openExport(t.Context(), "sydney", region.ExportRequest{Environment: id})
	if err != nil {
		t.Fatal(err)
	}
	u, err := deviceURL(dir, "sydney", string(id)+"/web/root")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("qemu-io", "-f", "raw", "-c", "write -P 0xa5 1M 200k", "-c", "flush", u).CombinedOutput(); err != nil {
		t.Fatalf("qemu-io: %v\n%s", err, out)
	}
	after := bytes.Clone(before)
	copy(after[1<<20:], bytes.Repeat([]byte{0xa5}, 200<<10))
	second, err := w.client().openExport(t.Context(), "sydney", region.ExportRequest{Environment: id})
	if err != nil {
		t.Fatal(err)
	}
	check := func(when string, first, second *exported) {
		t.Helper()
		if !bytes.Equal(w.readAll(first), before) {
			t.Errorf("%s: the first export does not have the bytes of its moment", when)
		}
		if !bytes.Equal(w.readAll(second), after) {
			t.Errorf("%s: the second export does not have the bytes of its moment", when)
		}
	}
	check("before", first, second)

	w.stop()
	w = newWorld(t, dir)
	again := func(e *exported) *exported { // the region has another port now
		c := w.client()
		var to struct {
			HTTP string `json:"http"`
		}
		b, err := c.read(t.Context(), "/v1/regions/sydney", nil)
		if err != nil || json.Unmarshal(b, &to) != nil {
			t.Fatal(err)
		}
		return &exported{e.ExportAnswer, c.entranceTo("sydney"), "http://" + to.HTTP}
	}
	first, second = again(first), again(second)
	check("after a restart", first, second)

	w.run("env", "delete", string(id), "--yes", "-q")
	check("after the deletion", first, second)

	first.close(t.Context())
	if kept := w.kept(); len(kept) != 1 || kept[0] != second.ID+".json" {
		t.Errorf("after the first has ended there is %v", kept)
	}
	second.close(t.Context())
	if kept := w.kept(); len(kept) != 0 {
		t.Errorf("after both have ended there is %v", kept)
	}
	if _, err := first.disk(t.Context(), first.Disks[0], newMeter(first.at.client.app, "sydney", "downloading")); codeOf(err) != "export-unknown" {
		t.Errorf("an export that has ended answers %v", err)
	}
}

func codeOf(err error) string {
	var f *failure
	if errors.As(err, &f) {
		return f.Code
	}
	return ""
}

// TestExportGoesOnAfterCuts reads through a link that breaks every connection
// after some hundred KiB.
func TestExportGoesOnAfterCuts(t *testing.T) {
	w := newWorld(t, t.TempDir())
	id, want := w.shop()
	e, err := w.client().openExport(t.Context(), "sydney", region.ExportRequest{Environment: id})
	if err != nil {
		t.Fatal(err)
	}
	link := cutLink(t, strings.TrimPrefix(e.base, "http://"), 300_000)
	direct := e.base
	e.base = "http://" + link.address
	d, err := e.disk(t.Context(), e.Disks[0], newMeter(e.at.client.app, "sydney", "downloading"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := writeBeside(path, func(f *os.File) error { return d.save(t.Context(), f) }); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("over a link that breaks other bytes came")
	}
	if cuts := link.cuts.Load(); cuts < 3 {
		t.Errorf("the link has broken %d times only: the test shows nothing", cuts)
	}
	e.base = direct
	e.close(t.Context())
}

type link struct {
	address string
	cuts    atomic.Int64
}

// cutLink passes connections on, and breaks each after so many bytes of answers.
func cutLink(t *testing.T, to string, limit int64) *link {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	out := &link{address: l.Addr().String()}
	t.Cleanup(func() {
		l.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			go func() {
				_, _ = io.Copy(far, near)
				far.Close()
			}()
			go func() {
				if n, _ := io.CopyN(near, far, limit); n == limit {
					out.cuts.Add(1)
				}
				near.Close()
				far.Close()
			}()
		}
	}()
	return out
}

// stranger is the token of another account's operator, whom the region knows,
// and that operator's ticket to it.
func (w *world) stranger(e *exported) (token, ticket string) {
	w.t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		w.t.Fatal(err)
	}
	key, err := pair.PublicKey()
	if err != nil {
		w.t.Fatal(err)
	}
	token = "the token of " + key
	c := w.client()
	_, added, err := c.write(w.t.Context(), http.MethodPost, "/v1/accounts/acme/users",
		map[string]string{"user": "eve", "role": "operator", "nkey": key, "token": string(events.DigestOf([]byte(token)))})
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := e.at.send(w.t.Context(), http.MethodGet, e.base+"/v1/regions?after="+strconv.FormatUint(added.Sequence, 10), nil, nil); err != nil {
		w.t.Fatal(err)
	}
	if _, err := c.read(w.t.Context(), "/v1/regions", nil); err != nil { // as far as the control plane goes
		w.t.Fatal(err)
	}
	eve := *c
	eve.context.Token = token
	eve.context.Account, eve.context.Home = "acme", "acme"
	return token, w.ticket(&eve)
}

// ticket is what somebody shows to sydney.
func (w *world) ticket(of *client) string {
	w.t.Helper()
	ticket, err := of.entranceTo("sydney").current(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return ticket
}

// TestExportsAreTheAccountsOwn: nobody else's environment can be exported, nor
// another's export be read.
func TestExportsAreTheAccountsOwn(t *testing.T) {
	w := newWorld(t, t.TempDir())
	id, _ := w.shop()
	e, err := w.client().openExport(t.Context(), "sydney", region.ExportRequest{Environment: id})
	if err != nil {
		t.Fatal(err)
	}
	defer e.close(t.Context())
	mine := w.ticket(w.client())
	if _, _, err := w.client().write(t.Context(), http.MethodPost, "/v1/accounts", map[string]string{"account": "acme", "display": "Acme"}); err != nil {
		t.Fatal(err)
	}
	theirToken, stranger := w.stranger(e)
	for _, c := range []struct {
		method, path, token, body, code string
		status                          int
	}{
		{"POST", "/v1/exports", "not-a-ticket", `{"environment":"` + string(id) + `"}`, "ticket-invalid", 401},
		{"POST", "/v1/exports", w.client().context.Token, `{"environment":"` + string(id) + `"}`, "ticket-invalid", 401},
		{"GET", "/v1/regions", theirToken, "", "ticket-invalid", 401},
		{"PUT", "/v1/uploads/" + string(id) + "/web/root", mine, "x", "ticket-elsewhere", 401},
		{"GET", e.Disks[0].Path, "", "", "not-authenticated", 401},
		{"POST", "/v1/exports", stranger, `{"environment":"` + string(id) + `"}`, "environment-unknown", 404},
		{"GET", "/v1/exports/" + e.ID, stranger, "", "export-unknown", 404},
		{"GET", e.Disks[0].Path, stranger, "", "export-unknown", 404},
		{"GET", e.Disks[0].Path + "/extents", stranger, "", "export-unknown", 404},
		{"DELETE", "/v1/exports/" + e.ID, stranger, "", "export-unknown", 404},
		{"GET", "/v1/exports/nothing", mine, "", "export-unknown", 404},
		{"GET", "/v1/exports/..%2f..%2fagent-id", mine, "", "export-unknown", 404},
		{"GET", "/v1/exports/" + e.ID + "/web/swap", mine, "", "disk-unknown", 404},
		{"POST", "/v1/exports", mine, `{"environment":"a","template":"b"}`, "bad-request", 400},
		{"POST", "/v1/exports", mine, `{"environment":"nothing"}`, "environment-unknown", 404},
		{"POST", "/v1/exports", mine, `{"template":"10000000","version":1}`, "template-unknown", 404},
		{"POST", "/v1/exports", mine, strings.Repeat(" ", 5000) + "{}", "bad-request", 400},
	} {
		r, err := http.NewRequest(c.method, e.base+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		if c.token != "" {
			r.Header.Set("Authorization", "Bearer "+c.token)
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != c.status || !strings.Contains(string(b), `"`+c.code+`"`) {
			t.Errorf("%s %s %s: %s %s, want %d %s", c.method, c.path, c.body, resp.Status, b, c.status, c.code)
		}
	}
	// A ticket is worth what its user may do by now.
	c := w.client()
	_, removed, err := c.write(t.Context(), http.MethodDelete, "/v1/accounts/acme/users/eve", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.at.send(t.Context(), http.MethodGet, e.base+"/v1/regions?after="+strconv.FormatUint(removed.Sequence, 10), nil, nil); err != nil {
		t.Fatal(err)
	}
	gone := &entrance{client: c, ticket: stranger}
	for i, since := range []string{"was removed", "was added anew, with another credential"} {
		if i > 0 {
			w.stranger(e)
		}
		for path, code := range map[string]string{"/v1/regions": "credentials-unknown", "/v1/exports/" + e.ID: "not-authenticated"} {
			if _, err := gone.send(t.Context(), http.MethodGet, e.base+path, nil, nil); codeOf(err) != code {
				t.Errorf("%s by the ticket of a user who %s: %v, want %s", path, since, err, code)
			}
		}
	}
	if kept := w.kept(); len(kept) != 1 {
		t.Errorf("refused requests have left %v", kept)
	}
}
