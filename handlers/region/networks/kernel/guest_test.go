package kernel_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/kernel"
	"github.com/tombolo-vdc/tombolo/testenv/guest"
)

// TestGuests has two real machines on a network: they get names and addresses, one is reached at its public address, and
// reaches the other by name.
func TestGuests(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("networks of the kernel need root; the CI is root")
	}
	image, err := guest.Build(t.Context(), guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	s, err := kernel.New(kernel.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removeAll(t, dir) })
	bind := netip.MustParseAddr("127.98.3.4")
	n := networks.Network{Environment: "guests", Owner: "test", Epoch: 1, Segments: []networks.Segment{{
		ID: "front", Subnet: netip.MustParsePrefix("10.55.0.0/24"), Gateway: netip.MustParseAddr("10.55.0.1"), DHCP: true, DNS: true,
		Ports: []networks.Port{
			{Machine: "web", MAC: "02:00:00:00:55:01", Address: netip.MustParseAddr("10.55.0.10")},
			{Machine: "app", MAC: "02:00:00:00:55:02", Address: netip.MustParseAddr("10.55.0.11")},
		}}},
		Edge: networks.Edge{Publics: []networks.Public{{Address: netip.MustParseAddr("203.0.113.200"), Bind: bind, Target: netip.MustParseAddr("10.55.0.10"),
			Open: []networks.Forward{{Protocol: networks.TCP, Port: 80}}}}}}
	if err := s.Apply(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	for _, p := range n.Segments[0].Ports {
		id := networks.PortID{Environment: n.Environment, Machine: p.Machine}
		at, err := s.Attachment(t.Context(), 1, id)
		if err != nil {
			t.Fatal(err)
		}
		disk := filepath.Join(dir, p.Machine+".raw")
		if err := image.CopyTo(disk); err != nil {
			t.Fatal(err)
		}
		c := exec.Command("nsenter", "--net="+at.Namespace, "qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-m", "128", "-nodefaults", "-display", "none",
			"-serial", "file:"+filepath.Join(dir, p.Machine+".log"),
			"-drive", "file="+disk+",if=none,id=disk,format=raw", "-device", "virtio-blk-pci,drive=disk",
			"-netdev", "tap,id=net,script=no,downscript=no,vnet_hdr=on,ifname="+at.Tap, "-device", "virtio-net-pci,netdev=net,mac="+p.MAC)
		c.Stderr = os.Stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = c.Process.Kill()
			_ = c.Wait()
			if text, err := os.ReadFile(filepath.Join(dir, p.Machine+".log")); err == nil && t.Failed() {
				t.Logf("serial port of %s: %s", p.Machine, text)
			}
		})
		if err := s.Plug(t.Context(), 1, id); err != nil {
			t.Fatal(err)
		}
	}
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	answers := func(path string) (a guest.Answer) {
		t.Helper()
		again := time.NewTicker(20 * time.Millisecond)
		defer again.Stop()
		for end := time.Now().Add(time.Minute); ; <-again.C {
			err := func() error {
				r, err := client.Get("http://" + bind.String() + path)
				if err != nil {
					return err
				}
				defer r.Body.Close()
				body, err := io.ReadAll(r.Body)
				if err == nil && r.StatusCode != http.StatusOK {
					err = errors.New(string(body))
				}
				if err != nil {
					return err
				}
				return json.Unmarshal(body, &a)
			}()
			if err == nil {
				return a
			}
			if time.Now().After(end) {
				t.Fatalf("GET %s: %v", path, err)
			}
		}
	}
	web := answers("/")
	t.Logf("web at its public address after %.2f s", time.Since(began).Seconds())
	app := answers("/peer?url=http://app/")
	for _, m := range []struct {
		is            guest.Answer
		name, address string
	}{{web, "web", "10.55.0.10/24"}, {app, "app", "10.55.0.11/24"}} {
		if got := fmt.Sprint(m.is.Interfaces[0].Addresses); m.is.Hostname != m.name || got != "["+m.address+"]" {
			t.Errorf("%s at %s, want %s at %s", m.is.Hostname, got, m.name, m.address)
		}
	}
	const size = 32 << 20
	start := time.Now()
	r, err := client.Get(fmt.Sprintf("http://%s/bytes?n=%d", bind, size))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if got, err := io.Copy(io.Discard, r.Body); err != nil || got != size {
		t.Errorf("%d bytes of %d, %v", got, size, err)
	}
	t.Logf("%.2f Gbit/s from an emulated processor to the outside", size*8/float64(time.Since(start).Nanoseconds()))
	ports, edges, err := s.Counters(t.Context())
	if err != nil || len(ports) != 2 || len(edges) != 1 {
		t.Fatalf("%v %v %v", ports, edges, err)
	}
	if web := ports[1]; web.InBytes < size || !web.Plugged || edges[0].OutBytes < size {
		t.Errorf("counters: %+v %+v", web, edges[0])
	}
}
