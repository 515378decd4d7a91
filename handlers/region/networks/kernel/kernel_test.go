package kernel_test

import (
	"context"
	"os"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/kernel"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/networkstest"
)

func TestSubstrate(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("networks of the kernel need root; the CI is root")
	}
	networkstest.Run(t, func(t *testing.T) networkstest.Harness {
		return networkstest.Harness{Alone: true, Open: func(o networkstest.Options) (networks.Substrate, error) {
			s, err := kernel.New(kernel.Config{Dir: o.Dir, Pools: o.Pools, Resolvers: o.Resolvers, UDPIdle: o.UDPIdle})
			if err != nil {
				return nil, err
			}
			t.Cleanup(func() { removeAll(t, o.Dir) })
			return s, nil
		}}
	})
}

// removeAll takes away what a test has made, which outlives its substrate.
func removeAll(t *testing.T, dir string) {
	s, err := kernel.New(kernel.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background() // the test's has ended
	all, err := s.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range all {
		if err := s.Remove(ctx, 1<<30, n.Environment); err != nil {
			t.Error(err)
		}
	}
}
