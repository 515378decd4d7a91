package testenv

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
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
	take := func(path string) []string { return []string{"env", "import", path, "--region", "beijing"} }
	create := func(spec string) []string { return []string{"env", "create", "--region", "beijing", "-f", spec} }
	future := filepath.Join(w.Dir, "future")
	if err := os.MkdirAll(future, 0o700); err != nil {
		t.Fatal(err)
	}
	w.File("future/format", []byte("99\n"))
	past := filepath.Join(w.Dir, "past")
	if err := os.MkdirAll(past, 0o700); err != nil {
		t.Fatal(err)
	}
	w.File("past/format", []byte("0\n"))
	w.File("raw.img", Disk(2, 2*mib))
	cut := func(name, format string, options ...string) string {
		t.Helper()
		path := filepath.Join(w.Dir, name)
		args := append([]string{"convert", "-f", "raw", "-O", format}, options...)
		if out, err := exec.CommandContext(w.Context(), "qemu-img", append(args, filepath.Join(w.Dir, "raw.img"), path)...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
		if err := os.Truncate(path, mib); err != nil {
			t.Fatal(err)
		}
		return path
	}
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
		{"a qcow2 that ends too early", take(cut("cut.qcow2", "qcow2")), 1, "disk-truncated"},
		{"a streamed VMDK that ends too early", take(cut("cut.vmdk", "vmdk", "-o", "subformat=streamOptimized")), 1, "disk-truncated"},
		{"a qcow2 over another file", take(backed(t, w)), 1, "disk-has-backing-file"},
		{"a package that leads out of its folder", take(archive(t, w, "a.ova", tar.Header{Name: "../../evil"})), 1, "ova-entry-name"},
		{"a package with a link", take(archive(t, w, "b.ova", tar.Header{Name: "disk.img", Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"})), 1, "ova-entry-type"},
		{"a package of absurd size", take(archive(t, w, "c.ova", tar.Header{Name: "disk.img", Size: 1 << 60})), 1, "ova-entry-too-large"},
		{"a package that unpacks to far more", take(bomb(t, w)), 1, "ova-expands-too-much"},
		{"no package", take(file("d.ova", "this is no archive")), 1, "ova-damaged"},
		{"a region that is not there", []string{"env", "create", "--region", "atlantis", "-f", file("h.yaml", machine+"  - {name: a}\n")}, 3, "region-unknown"},
		{"a template that is not there", []string{"where", "nothing"}, 3, "template-unknown"},
		{"a port in use, HTTP", []string{"up", "--data", "x", "--http", busy.Addr().String(), "--nats", "127.0.0.1:0"}, 1, "port-in-use"},
		{"a port in use, bus", []string{"server", "--data", "x", "--http", "127.0.0.1:0", "--nats", busy.Addr().String()}, 1, "port-in-use"},
		{"a port in use, agent", []string{"agent", "run", "--data", "y", "--enrolment", w.Agents["beijing"].Enrolment, "--http-listen", busy.Addr().String()}, 1, "port-in-use"},
		{"a data directory in use", []string{"server", "--data", "server", "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0"}, 1, "data-in-use"},
		{"an agent's directory in use", []string{"agent", "run", "--data", "beijing", "--enrolment", w.Agents["beijing"].Enrolment}, 1, "agent-dir-in-use"},
		{"a data directory of a later program", []string{"server", "--data", "future", "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0"}, 1, "data-format-unknown"},
		{"an agent's directory of a later program", []string{"agent", "run", "--data", "future", "--enrolment", w.Agents["beijing"].Enrolment}, 1, "data-format-unknown"},
		{"a data directory of an earlier program", []string{"server", "--data", "past", "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0"}, 1, "data-format-unknown"},
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
	oversize(t, w)
	if left, err := filepath.Glob(filepath.Join(future, "*")); err != nil || len(left) > 3 { // the mark, and the two files that are locked
		t.Errorf("a directory of a later program was worked on: %v %v", left, err)
	}
	w.Clean()
}

// backed makes a qcow2 image that is only a difference to another file.
func backed(t *testing.T, w *World) string {
	t.Helper()
	path := filepath.Join(w.Dir, "over.qcow2")
	if out, err := exec.CommandContext(w.Context(), "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", filepath.Join(w.Dir, "raw.img"), path).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v: %s", err, out)
	}
	return path
}

// envelope is the descriptor of a machine with one disk, which has this many bytes.
func envelope(attributes string, capacity int64) string {
	const space, cim = "http://schemas.dmtf.org/ovf/envelope/1", "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
	return fmt.Sprintf(`<?xml version="1.0"?><Envelope xmlns="%[1]s" xmlns:ovf="%[1]s" xmlns:rasd="%[2]s"><References><File ovf:id="f" ovf:href="disk.img" %[3]s/></References>
<DiskSection><Info/><Disk ovf:diskId="d" ovf:fileRef="f" ovf:capacity="%[4]d" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/></DiskSection>
<VirtualSystem ovf:id="vm"><Info/><VirtualHardwareSection><Info/><Item><rasd:HostResource>ovf:/disk/d</rasd:HostResource><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>17</rasd:ResourceType></Item></VirtualHardwareSection></VirtualSystem></Envelope>`,
		space, cim, attributes, capacity)
}

// archive makes an OVA of a good descriptor and one entry that only its header describes.
func archive(t *testing.T, w *World, name string, entry tar.Header) string {
	t.Helper()
	var b bytes.Buffer
	out := tar.NewWriter(&b)
	descriptor := envelope("", mib)
	err := out.WriteHeader(&tar.Header{Name: "shop.ovf", Mode: 0o600, Size: int64(len(descriptor))})
	if err == nil {
		_, err = out.Write([]byte(descriptor))
	}
	if entry.Mode = 0o600; entry.Typeflag == 0 {
		entry.Typeflag = tar.TypeReg
	}
	if err = errors.Join(err, out.WriteHeader(&entry)); err != nil {
		t.Fatal(err)
	}
	return w.File(name, b.Bytes()) // without the content that a large entry promises
}

// bomb makes an OVA whose disk is a kilobyte that unpacks to far more than the disk can be.
func bomb(t *testing.T, w *World) string {
	t.Helper()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, err := io.CopyN(z, zeros{}, 512*mib)
	if err = errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	out := tar.NewWriter(&b)
	for _, f := range []struct{ name, content string }{{"shop.ovf", envelope(`ovf:compression="gzip"`, mib)}, {"disk.img", packed.String()}} {
		err = errors.Join(err, out.WriteHeader(&tar.Header{Name: f.name, Mode: 0o600, Size: int64(len(f.content))}))
		if _, e := out.Write([]byte(f.content)); e != nil {
			err = errors.Join(err, e)
		}
	}
	if err = errors.Join(err, out.Close()); err != nil {
		t.Fatal(err)
	}
	return w.File("bomb.ova", b.Bytes())
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// oversize: a command on the bus that is larger than commands are, or than
// messages are, is refused with a code and the connection stays.
func oversize(t *testing.T, w *World) {
	t.Helper()
	conn, err := bus.Connect(w.Admin.NATS, w.Admin.Seed)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	subject := "tombolo.command.default.template.protect"
	answer, err := conn.RequestMsgWithContext(w.Context(), &nats.Msg{Subject: subject, Data: []byte(`{"template":"` + strings.Repeat("1", 512<<10) + `"}`)})
	if err != nil || !strings.Contains(string(answer.Data), `"too-large"`) {
		t.Errorf("a command of 512 KiB: %v %.300s", err, answer.Data)
	}
	if err := conn.PublishMsg(&nats.Msg{Subject: subject, Data: make([]byte, 2*mib)}); !errors.Is(err, nats.ErrMaxPayload) {
		t.Errorf("a message of 2 MiB: %v", err)
	}
	answer, err = conn.RequestMsgWithContext(w.Context(), &nats.Msg{Subject: subject, Data: []byte(`{"template":"00000000","protected":true}`)})
	if err != nil || !strings.Contains(string(answer.Data), `"template-`) {
		t.Errorf("the connection after it: %v %.300s", err, answer.Data)
	}
}

// receiving waits until a region is to receive the disks of the only environment.
func (w *World) receiving() {
	w.t.Helper()
	for after := w.Position(); ; after++ {
		var all struct {
			Position uint64
			Items    []struct{ State string }
		}
		if err := w.Client().Get(w.Context(), "/v1/environments?after="+strconv.FormatUint(after, 10), &all); err != nil {
			w.t.Fatal(err)
		}
		if len(all.Items) == 1 && all.Items[0].State == "receiving" {
			return
		}
		after = all.Position
	}
}

// TestInterruptedUpload: whoever ends env create while disks are sent, or before
// the server has answered at all, leaves no environment behind.
func TestInterruptedUpload(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	for _, when := range []struct {
		name     string
		answered bool
	}{{"WhileSending", true}, {"BeforeTheAnswer", false}} {
		t.Run(when.name, func(t *testing.T) {
			t.Parallel()
			w := New(t, tombolo, Options{Regions: []string{"beijing"}})
			w.File("disk.img", Disk(1, 4*mib))
			spec := w.File("shop.yaml", []byte(machine+"  - {name: web, disks: [{name: root, file: disk.img}]}\n"))
			answered, interrupted := make(chan struct{}), make(chan struct{})
			slow := w.slowAnswers(answered, interrupted)
			beijing := w.Region("beijing")
			beijing.Process.Pause()
			p, err := start(t, t.Cleanup, "env create", filepath.Join(w.Dir, "create.log"), []string{"TOMBOLO_CONTEXT=" + slow}, tombolo.Path, "env", "create", "-f", spec, "--region", "beijing", "-o", "json")
			if err != nil {
				t.Fatal(err)
			}
			w.receiving()
			if when.answered {
				close(interrupted)
				await(t, w.Context(), "env create did not go on", answered)
				p.Interrupt()
			} else {
				p.Interrupt()
				close(interrupted)
			}
			beijing.Process.Resume()
			if code := p.Exit(w.Context()); code != 1 || !strings.Contains(p.Log(), `"code":"interrupted"`) {
				t.Errorf("exit %d: %s", code, p.Log())
			}
			w.Rest()
			var all struct{ Items []map[string]any }
			if err := w.Client().Get(w.Context(), "/v1/environments", &all); err != nil || len(all.Items) > 0 {
				t.Errorf("there is an environment: %s %v", JSON(all.Items), err)
			}
			w.Clean()
		})
	}
}

// slowAnswers is the context of a way to the server on which the answer to a
// new environment waits for send. Once the sender has it and goes on, got is closed.
func (w *World) slowAnswers(got chan<- struct{}, send <-chan struct{}) string {
	w.t.Helper()
	to, err := url.Parse(w.Admin.HTTP)
	if err != nil {
		w.t.Fatal(err)
	}
	var goesOn sync.Once
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) },
		ModifyResponse: func(r *http.Response) error {
			switch {
			case r.Request.Method == http.MethodPost && r.Request.URL.Path == "/v1/environments":
				<-send
			case strings.HasPrefix(r.Request.URL.Path, "/v1/environments/"):
				goesOn.Do(func() { close(got) })
			}
			return nil
		},
	})
	w.t.Cleanup(proxy.Close)
	admin := w.Admin
	admin.HTTP = proxy.URL
	file := filepath.Join(w.Dir, "slow.json")
	if err := admin.Write(file); err != nil {
		w.t.Fatal(err)
	}
	return file
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
	w.receiving()
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
	enrol := func() {
		t.Helper()
		if err := os.WriteFile(sydney.Enrolment, []byte(JSON(e)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// The agent itself sees that its certificate is not of the authority it believes.
	enrol()
	refused := sydney.Launch(sydney.Dir)
	if code := refused.Exit(w.Context()); code != 1 || !strings.Contains(refused.Log(), "certificate-untrusted") {
		t.Errorf("an agent with another's certificate: exit %d: %s", code, refused.Log())
	}
	// One that is made to believe it is refused by the other regions.
	e["authority"] = string(other.PEM())
	enrol()
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
