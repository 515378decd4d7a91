package userspace_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/networkstest"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/userspace"
)

func TestSubstrate(t *testing.T) {
	networkstest.Run(t, func(*testing.T) networkstest.Harness { return harness() })
}

func harness() networkstest.Harness {
	return networkstest.Harness{Open: func(o networkstest.Options) (networks.Substrate, error) {
		return userspace.New(userspace.Config{Dir: o.Dir, Pools: o.Pools, Resolvers: o.Resolvers, UDPIdle: o.UDPIdle})
	}}
}

func BenchmarkEdge(b *testing.B) { networkstest.Benchmark(b, harness()) }

// idleNetwork has three machines in one segment, all plugged in.
func idleNetwork(n int) networks.Network {
	s := networks.Segment{ID: "lan", Subnet: netip.MustParsePrefix("10.0.0.0/24"), Gateway: netip.MustParseAddr("10.0.0.1"), DHCP: true, DNS: true}
	for i := range 3 {
		mac := fmt.Sprintf("02:00:00:00:00:%02x", i+1)
		s.Ports = append(s.Ports, networks.Port{Machine: fmt.Sprint("m", i), MAC: mac, Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(10 + i)})})
	}
	return networks.Network{Environment: fmt.Sprint("env-", n), Segments: []networks.Segment{s}}
}

// TestIdle: what a network takes while nothing happens, and that all of it is given back.
func TestIdle(t *testing.T) {
	dir, err := os.MkdirTemp("", "net")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	heap := func() (bytes uint64, goroutines int) {
		runtime.GC()
		runtime.GC() // what pools held goes with the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse, runtime.NumGoroutine()
	}
	bytes0, routines0 := heap()
	s, err := userspace.New(userspace.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	const environments = 20
	for i := range environments {
		if err := s.Apply(t.Context(), idleNetwork(i)); err != nil {
			t.Fatal(err)
		}
	}
	bytes1, routines1 := heap()
	t.Logf("an environment of one segment without machines: %d KiB, %d goroutines", (bytes1-bytes0)>>10/environments, (routines1-routines0)/environments)
	for i := range environments {
		for _, p := range idleNetwork(i).Segments[0].Ports {
			id := networks.PortID{Environment: fmt.Sprint("env-", i), Machine: p.Machine}
			at, err := s.Attachment(t.Context(), 0, id)
			if err != nil {
				t.Fatal(err)
			}
			l, err := net.Listen("unix", at.Socket)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			if err := s.Plug(t.Context(), 0, id); err != nil {
				t.Fatal(err)
			}
		}
	}
	bytes2, routines2 := heap()
	t.Logf("a port with a machine: %d bytes, %.2f goroutines", (bytes2-bytes1)/(3*environments), float64(routines2-routines1)/(3*environments))
	if routines2-routines1 > 3*environments {
		t.Errorf("%d goroutines for %d ports", routines2-routines1, 3*environments)
	}
	for i := range environments {
		if err := s.Remove(t.Context(), 0, fmt.Sprint("env-", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	deadline := time.After(30 * time.Second)
	for tick := time.NewTicker(10 * time.Millisecond); runtime.NumGoroutine() > routines0; {
		select {
		case <-tick.C:
		case <-deadline:
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines before, %d after:\n%s", routines0, runtime.NumGoroutine(), buf[:runtime.Stack(buf, true)])
		}
	}
}

// TestLongFolder: wherever a region's data is, its machines can be plugged in.
func TestLongFolder(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	for range 2 { // the same place again
		s, err := userspace.New(userspace.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		n := networks.Network{Environment: "e1", Owner: "order", Segments: []networks.Segment{{ID: "lan", Ports: []networks.Port{{Machine: "web", MAC: "52:54:00:00:00:01"}}}}}
		if err := s.Apply(t.Context(), n); err != nil {
			t.Fatal(err)
		}
		at, err := s.Attachment(t.Context(), 0, networks.PortID{Environment: "e1", Machine: "web"})
		if err != nil || len(at.Socket) > 107 {
			t.Errorf("%d bytes: %q, %v", len(at.Socket), at.Socket, err)
		}
		if l, err := net.Listen("unix", at.Socket); err != nil {
			t.Error(err)
		} else {
			l.Close()
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
