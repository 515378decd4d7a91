package testenv

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/testenv/guest"
)

// linux makes an environment of one machine that boots the guest of package
// guest, and gives the environment's id and where the guest is reached.
func (w *World) linux(tombolo Real, image guest.Image, name, address string) (env, at string) {
	w.t.Helper()
	var made struct{ ID string }
	file := w.File(name+".yaml", fmt.Appendf(nil, `name: %s
networks: [{name: lan, subnet: 10.0.0.0/24}]
machines:
  - name: web
    memory_mib: 128
    disks: [{name: root, file: %s, format: raw}]
    interfaces: [{network: lan, address: %s, public_address: auto, open: [tcp/80]}]
`, name, image.Path, address))
	w.run(tombolo.Path, &made, "env", "create", "--region", "beijing", "-f", filepath.Base(file))
	for _, p := range w.Seen(made.ID, "web", "running").Public {
		for _, o := range p.Open {
			at = "http://" + o.At
		}
	}
	return made.ID, at
}

// hears asks a guest until it answers.
func (w *World) hears(at string) (a guest.Answer) {
	w.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	for {
		resp, err := client.Get(at)
		if err == nil {
			err = json.NewDecoder(resp.Body).Decode(&a)
			_ = resp.Body.Close()
		}
		if err == nil {
			return a
		}
		if pause(w.ctx) != nil {
			w.t.Fatalf("%s: %v", at, err)
		}
	}
}

// TestNetworksOfTheirOwn: two environments have the same inner subnet and the same
// gateway, each is reached at its own address, and neither reaches the other. A
// connection through an edge outlives the region's agent, killed and started
// again. It does not outlive the networks' own process; but the networks are back
// by themselves, and the guests have not noticed more than that.
func TestNetworksOfTheirOwn(t *testing.T) {
	t.Parallel()
	tombolo := realProgram(t)
	image, err := guest.Build(t.Context(), guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := New(t, Emulated{Kind: tombolo}, Options{Regions: []string{"beijing"}})
	w.BoundPools()
	a := w.Region("beijing")
	first, one := w.linux(tombolo, image, "one", "10.0.0.2")
	second, two := w.linux(tombolo, image, "two", "10.0.0.3")
	before := map[string]guest.Answer{one: w.hears(one), two: w.hears(two)}
	if before[one].BootID == before[two].BootID || before[one].Interfaces[0].Addresses[0] != "10.0.0.2/24" || before[two].Interfaces[0].Addresses[0] != "10.0.0.3/24" {
		t.Errorf("the guests answer %s", JSON(before))
	}
	for from, to := range map[string]string{one: "10.0.0.3", two: "10.0.0.2"} {
		if status, text := w.get(from + "/ping?host=" + to); status != http.StatusBadGateway {
			t.Errorf("%s reaches %s of another environment: %d %s", from, to, status, text)
		}
		if status, text := w.get(from + "/ping?host=10.0.0.1"); status != http.StatusOK {
			t.Errorf("%s does not reach its gateway: %d %s", from, status, text)
		}
	}

	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, one+"/ticks", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	ticks := bufio.NewReader(resp.Body)
	tick := func(when string) {
		t.Helper()
		for more := 2; more > 0; more-- { // one may have been on its way
			if _, err := ticks.ReadString('\n'); err != nil {
				t.Fatalf("%s the connection broke: %v", when, err)
			}
		}
	}
	tick("before anything")
	a.Process.Kill()
	tick("while no agent was there")
	a.Start()
	tick("when the agent was back")

	_, networks := a.Processes(t)
	if len(networks) != 1 {
		t.Fatalf("%d networks' processes, want one", len(networks))
	}
	kill(t, networks)
	if _, err := io.Copy(io.Discard, ticks); w.ctx.Err() != nil {
		t.Fatalf("the connection neither breaks nor goes on: %v", err)
	}
	for at, was := range before {
		if is := w.hears(at); is.BootID != was.BootID || is.Counter.PID != was.Counter.PID {
			t.Errorf("%s was %s, and is %s", at, JSON(was), JSON(is))
		}
	}
	if status, text := w.get(one + "/ping?host=10.0.0.1"); status != http.StatusOK {
		t.Errorf("the guest does not reach its gateway: %d %s", status, text)
	}
	for _, env := range []string{first, second} {
		w.Done(w.must("DELETE", "/v1/environments/"+env, struct{}{}).Operation)
	}
	w.Clean()
	for _, env := range []string{first, second} {
		a.Left(t, env)
	}
	for _, at := range []string{one, two} {
		if listens(hostPort(at)) {
			t.Errorf("%s is still bound though its environment was deleted", at)
		}
	}
}

// get asks a guest once.
func (w *World) get(url string) (status int, text string) {
	w.t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}
