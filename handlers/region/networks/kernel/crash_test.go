package kernel

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

const childDir = "TOMBOLO_TEST_NETWORKS_DIR"

// TestChild is no test: it changes networks until it is killed.
func TestChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		return
	}
	s, err := New(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	one, other := busy(), busy()
	other.Segments, other.Edge = other.Segments[:1], networks.Edge{}
	for {
		for _, do := range []func() error{
			func() error { return s.Apply(t.Context(), one) },
			func() error { return s.Apply(t.Context(), other) },
			func() error { return s.Remove(t.Context(), 1, one.Environment) },
		} {
			if err := do(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// busy is a network with something of everything.
func busy() networks.Network {
	n := sample()
	n.Environment, n.Owner, n.Epoch = "crash", "order-7", 1
	n.Segments = append(n.Segments, networks.Segment{ID: "wire", Ports: []networks.Port{
		{Machine: "m", Interface: 1, MAC: "02:00:00:00:00:02"}, {Machine: "n", MAC: "02:00:00:00:00:03"}}})
	n.Edge.Publics[0].Address, n.Edge.Publics[0].Bind = netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("127.99.7.7")
	return n
}

// traces are what the host has of a substrate's environments.
func traces(t *testing.T, s *Substrate) []string {
	t.Helper()
	var out []string
	for _, pattern := range []string{filepath.Join(namespaces, s.prefix+"*"), filepath.Join(s.records.dir, "*")} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, names...)
	}
	links, err := list(&netlink.Handle{})
	if err != nil {
		t.Fatal(err)
	}
	at := s.place("crash")
	for _, l := range links {
		if l.Attrs().Name == at.veth {
			out = append(out, "link "+at.veth)
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range routes {
		if prefixOf(r.Dst).Addr() == busy().Edge.Publics[0].Address {
			out = append(out, "route "+r.Dst.String())
		}
	}
	tables, err := exec.Command("nft", "list", "tables").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(tables), at.table) {
		out = append(out, "table "+at.table)
	}
	return out
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("networks of the kernel need root; the CI is root")
	}
}

// TestKilled kills a process while it changes networks: what it leaves is listed and removed, and Apply mends it.
func TestKilled(t *testing.T) {
	needRoot(t)
	random := rand.New(rand.NewPCG(3, 7))
	dir := t.TempDir()
	left := 0
	for round := range 20 {
		c := exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.v")
		c.Env = append(os.Environ(), childDir+"="+dir)
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		said, seen := make([]byte, 4096), []byte(nil)
		for !bytes.Contains(seen, []byte("ready")) {
			n, err := out.Read(said)
			if seen = append(seen, said[:n]...); err != nil {
				t.Fatalf("%v: %s", err, seen)
			}
		}
		ended := make(chan error, 1)
		go func() { ended <- c.Wait() }()
		select {
		case err := <-ended:
			t.Fatalf("the child ended by itself: %v", err)
		case <-time.After(time.Duration(random.IntN(250)) * time.Millisecond):
		}
		if err := c.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-ended

		s, err := New(Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		found := traces(t, s)
		all, err := s.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if len(found) > 0 {
			left++
			if len(all) != 1 || all[0].Environment != "crash" || all[0].Owner != "order-7" {
				t.Errorf("round %d: the host has %v, and listed is %+v", round, found, all)
			}
		}
		if round%2 == 0 {
			if err := s.Apply(t.Context(), busy()); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			n, err := s.Network(t.Context(), "crash")
			if d := networks.Diff(n, busy()); err != nil || len(d) > 0 {
				t.Errorf("round %d: applied again it is otherwise: %v, %v", round, d, err)
			}
		}
		for range 2 {
			if err := s.Remove(t.Context(), 1, "crash"); err != nil {
				t.Fatal(err)
			}
		}
		if found := traces(t, s); len(found) > 0 {
			t.Fatalf("round %d: removed, and there is %v", round, found)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if left == 0 {
		t.Error("no kill left anything: this tests nothing")
	}
	t.Logf("%d of 20 kills left something", left)
}

// TestForgotten lists and removes what the kernel has when the directory has lost its records.
func TestForgotten(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	s, err := New(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Apply(t.Context(), busy()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "networks")); err != nil {
		t.Fatal(err)
	}
	if s, err = New(Config{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	t.Cleanup(func() { _ = s.unmake(context.Background(), s.place("crash")) })
	all, err := s.List(t.Context())
	if err != nil || len(all) != 1 || all[0].Environment != "crash" {
		t.Fatalf("%+v, %v", all, err)
	}
	if err := s.Remove(t.Context(), 1, "crash"); err != nil {
		t.Fatal(err)
	}
	if found := traces(t, s); len(found) > 0 {
		t.Errorf("removed, and there is %v", found)
	}
}

// BenchmarkApply says what Apply and Remove take.
func BenchmarkApply(b *testing.B) {
	s, err := New(Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	defer func() { _ = s.Remove(context.Background(), 1, "crash") }()
	n := busy()
	b.Run("new and removed", func(b *testing.B) {
		for b.Loop() {
			if err := s.Apply(b.Context(), n); err != nil {
				b.Fatal(err)
			}
			if err := s.Remove(b.Context(), 1, "crash"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("again", func(b *testing.B) {
		for b.Loop() {
			if err := s.Apply(b.Context(), n); err != nil {
				b.Fatal(err)
			}
		}
	})
}
