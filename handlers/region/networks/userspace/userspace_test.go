package userspace_test

import (
	"testing"

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
