package testenv

import (
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/tombolo-vdc/tombolo/handlers/bus"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
)

// said is what the command line says on stderr with -o json.
type said struct {
	Code     string `json:"code"`
	Text     string `json:"text"`
	Next     string `json:"next"`
	Findings []struct {
		Code string `json:"code"`
	} `json:"findings"`
}

// codes are the failure's own and its findings'.
func (r Ran) codes() []string {
	lines := strings.Split(strings.TrimSpace(r.Err), "\n")
	var s said
	if json.Unmarshal([]byte(lines[len(lines)-1]), &s) != nil {
		_, rest, _ := strings.Cut(lines[0], "(")
		code, _, _ := strings.Cut(rest, ")")
		return []string{code}
	}
	out := []string{s.Code}
	for _, f := range s.Findings {
		out = append(out, f.Code)
	}
	return out
}

const machine = `name: Shop
networks: [{name: lan, subnet: 10.0.0.0/24}]
machines:
`

// TestBadInput: what is wrong is refused with a code and an exit code, and
// nothing of it is done.
func TestBadInput(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	w := New(t, tombolo, Options{Regions: []string{"beijing"}})
	w.Pools(8)
	w.File("good.img", Disk(1, 1*mib))
	w.File("empty.img", nil)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	file := func(name, content string) string { return filepath.Base(w.File(name, []byte(content))) }
	create := func(spec string) []string { return []string{"env", "create", "--region", "beijing", "-f", spec} }
	future := filepath.Join(w.Dir, "future")
	if err := os.MkdirAll(future, 0o700); err != nil {
		t.Fatal(err)
	}
	w.File("future/format", []byte("99\n"))
	notEnrolled := file("enrolment.json", `{"format": 1, "region": "beijing"}`)
	position := w.Position()
	for _, c := range []struct {
		name string
		args []string
		exit int
		code string
	}{
		{"not YAML", create(file("a.yaml", "name: [")), 1, "yaml-invalid"},
		{"a word nobody knows", create(file("b.yaml", machine+"  - {name: web, coolness: 11}\n")), 1, "environment-invalid"},
		{"a cycle", create(file("c.yaml", machine+"  - {name: a, depends_on: [b]}\n  - {name: b, depends_on: [a]}\n")), 1, "graph-cycle"},
		{"a name twice", create(file("d.yaml", machine+"  - {name: a}\n  - {name: a}\n")), 1, "duplicate-name"},
		{"a network that is not there", create(file("e.yaml", machine+"  - {name: a, interfaces: [{network: wan, address: 10.1.0.2}]}\n")), 1, "environment-invalid"},
		{"a disk that is not there", create(file("f.yaml", machine+"  - {name: a, disks: [{name: root, file: gone.img}]}\n")), 1, "disk-missing"},
		{"an empty disk", create(file("g.yaml", machine+"  - {name: a, disks: [{name: root, file: empty.img}]}\n")), 1, "disk-missing"},
		{"a region that is not there", []string{"env", "create", "--region", "atlantis", "-f", file("h.yaml", machine+"  - {name: a}\n")}, 3, "region-unknown"},
		{"a template that is not there", []string{"where", "nothing"}, 3, "template-unknown"},
		{"a port in use, HTTP", []string{"up", "--data", "x", "--http", busy.Addr().String(), "--nats", "127.0.0.1:0"}, 1, "port-in-use"},
		{"a port in use, bus", []string{"server", "--data", "x", "--http", "127.0.0.1:0", "--nats", busy.Addr().String()}, 1, "port-in-use"},
		{"a port in use, agent", []string{"agent", "run", "--data", "y", "--enrolment", w.Agents["beijing"].Enrolment, "--http-listen", busy.Addr().String()}, 1, "port-in-use"},
		{"a data directory in use", []string{"server", "--data", "server", "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0"}, 1, "data-in-use"},
		{"an agent's directory in use", []string{"agent", "run", "--data", "beijing", "--enrolment", w.Agents["beijing"].Enrolment}, 1, "agent-dir-in-use"},
		{"a data directory of a later program", []string{"server", "--data", "future", "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0"}, 1, "data-format-unknown"},
		{"an agent's directory of a later program", []string{"agent", "run", "--data", "future", "--enrolment", w.Agents["beijing"].Enrolment}, 1, "data-format-unknown"},
		{"half an enrolment", []string{"agent", "run", "--data", "y", "--enrolment", notEnrolled}, 1, "enrolment-invalid"},
		{"no enrolment", []string{"agent", "run", "--data", "y", "--enrolment", "nowhere.json"}, 1, "enrolment-unreadable"},
		{"enrolment in a region that is not there", []string{"agent", "enroll", "--region", "atlantis", "-o", "z.json"}, 3, "region-unknown"},
	} {
		args := append([]string{"--no-input", "-q"}, c.args...)
		if c.args[1] != "enroll" { // whose -o names a file
			args = append(args, "-o", "json")
		}
		r := w.CLI(tombolo.Path, args...)
		if r.Exit != c.exit || !slices.Contains(r.codes(), c.code) {
			t.Errorf("%s: tombolo %s: exit %d with %v, want %d with %s\n%s", c.name, strings.Join(c.args, " "), r.Exit, r.codes(), c.exit, c.code, r.Err)
		}
	}
	if now := w.Position(); now != position {
		t.Errorf("something was done: %s", JSON(w.Facts(position+1)))
	}
	if err := w.Client().Once(w.Context(), "POST", "/v1/environments", map[string]any{"region": "beijing", "spec": strings.Repeat("x", mib+64<<10)}, nil); CodeOf(err) != "bad-request" {
		t.Errorf("more than 1 MiB of specification: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(future, "*")); err != nil || len(left) > 3 { // the mark, and the two files that are locked
		t.Errorf("a directory of a later program was worked on: %v %v", left, err)
	}
	w.Clean()
}

// TestBadInputDiskChanges: a disk's file that changes while it is sent makes no
// environment.
func TestBadInputDiskChanges(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	w := New(t, tombolo, Options{Regions: []string{"beijing"}})
	w.File("disk.img", Disk(1, 4*mib))
	w.File("shop.yaml", []byte(machine+"  - {name: web, disks: [{name: root, file: disk.img}]}\n"))
	beijing := w.Region("beijing")
	beijing.Process.Pause()
	ran := make(chan Ran, 1)
	go func() {
		ran <- w.CLI(tombolo.Path, "env", "create", "-f", "shop.yaml", "--region", "beijing", "-q", "-o", "json")
	}()
	for after := w.Position(); ; after++ { // until the region is to receive what the file was
		var all struct {
			Position uint64
			Items    []struct{ State string }
		}
		if err := w.Client().Get(w.Context(), "/v1/environments?after="+strconv.FormatUint(after, 10), &all); err != nil {
			t.Fatal(err)
		}
		if len(all.Items) == 1 && all.Items[0].State == "receiving" {
			break
		}
		after = all.Position
	}
	w.File("disk.img", Disk(2, 4*mib))
	beijing.Process.Resume()
	if r := <-ran; r.Exit != 1 || !slices.Contains(r.codes(), "disk-changed") {
		t.Errorf("exit %d: %s", r.Exit, r.Err)
	}
	w.Rest()
	var all struct{ Items []map[string]any }
	if err := w.Client().Get(w.Context(), "/v1/environments", &all); err != nil || len(all.Items) > 0 {
		t.Errorf("there is an environment: %s %v", JSON(all.Items), err)
	}
	w.Clean()
}

// TestWrongCertificate: a region with the certificate of another installation
// gets nothing, and its copy once it has its own.
func TestWrongCertificate(t *testing.T) {
	t.Parallel()
	w := New(t, realProgram(t), Options{Regions: []string{"beijing", "sydney"}})
	w.Pools(8)
	sydney := w.Region("sydney")
	good, err := os.ReadFile(sydney.Enrolment)
	if err != nil {
		t.Fatal(err)
	}
	other, err := trust.OpenAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := other.Region(dir, "sydney"); err != nil {
		t.Fatal(err)
	}
	var e map[string]any
	if err := json.Unmarshal(good, &e); err != nil {
		t.Fatal(err)
	}
	for field, name := range map[string]string{"certificate": "region-sydney.pem", "key": "region-sydney.key"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		e[field] = string(b)
	}
	sydney.Process.Kill()
	if err := os.WriteFile(sydney.Enrolment, []byte(JSON(e)), 0o600); err != nil {
		t.Fatal(err)
	}
	sydney.Start()
	tried := w.Region("beijing").Transfer.Dialled(3)
	number, operation := w.Save(w.Create("shop", "beijing", Disk(1, mib)), "Shop", "beijing", "sydney")
	await(t, w.Context(), "sydney does not try", tried)
	at, err := w.Client().Where(w.Context(), number, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range at.Regions {
		if r.Region == "sydney" && r.Verified {
			t.Errorf("sydney got a copy with another's certificate: %s", JSON(at))
		}
	}
	if got := w.Region("beijing").Transfer.Down(); got > 256<<10 {
		t.Errorf("%d bytes went to somebody with another's certificate", got)
	}
	sydney.Process.Kill()
	if err := os.WriteFile(sydney.Enrolment, good, 0o600); err != nil {
		t.Fatal(err)
	}
	sydney.Start()
	w.Done(operation)
	w.Verified(number, 1, "beijing", "sydney")
	w.Clean()
}

// TestUnknownEvent: a program that finds an event of a later one in its journal
// ends with a code that says so; it neither skips it nor decides on half a
// history.
func TestUnknownEvent(t *testing.T) {
	t.Parallel()
	w := New(t, realProgram(t), Options{Regions: []string{"beijing"}})
	w.Pools(8)
	_, operation := w.Save(w.Create("shop", "beijing", Disk(1, 64<<10)), "Shop", "beijing")
	w.Done(operation)
	w.Rest()
	w.Server.Interrupt()
	if code := w.Server.Exit(w.Context()); code != 0 {
		t.Fatalf("exit %d: %s", code, w.Server.Log())
	}
	fromTheFuture(t, w)
	w.LaunchServer()
	if code := w.Server.Exit(w.Context()); code != 1 || !strings.Contains(w.Server.Log(), `"code":"event-unknown"`) || !strings.Contains(w.Server.Log(), "template.teleported") {
		t.Errorf("exit %d: %s", code, w.Server.Log())
	}
}

// fromTheFuture stores an event of a type that this program does not know, as
// another program's journal would have it.
func fromTheFuture(t *testing.T, w *World) {
	t.Helper()
	server, err := bus.Embedded(bus.Options{Dir: filepath.Join(w.serverDir(), "bus"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	conn, err := server.Connect()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(w.Context(), "EVENTS")
	if err != nil {
		t.Fatal(err)
	}
	last, err := stream.GetLastMsgForSubject(w.Context(), "tombolo.events.default._.template.*")
	if err != nil {
		t.Fatal(err)
	}
	m := nats.NewMsg(last.Subject)
	m.Data = last.Data
	for name, values := range last.Header {
		if !strings.HasPrefix(name, "Nats-") { // what was expected of the stream then
			m.Header[name] = values
		}
	}
	m.Header.Set("ce-type", "template.teleported")
	m.Header.Set("ce-id", "00000000-0000-5000-8000-000000000000")
	if _, err := js.PublishMsg(w.Context(), m); err != nil {
		t.Fatal(err)
	}
}
