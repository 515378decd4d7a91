package testenv

import (
	"net/url"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/projections"
)

// TestMapShowsCopies: capability 31: while a copy goes on, the map says which
// region holds the template and how far the other one is.
func TestMapShowsCopies(t *testing.T) {
	t.Parallel()
	const size = 16 * mib
	tombolo := realProgram(t)
	w := New(t, tombolo, Options{Regions: []string{"beijing", "sydney"}})
	c := copying(t, w, size, size/8)
	w.Region("beijing").Transfer.Slow(mib) // what is left takes long enough to be looked at
	at := func() map[string]api.Region {
		var drawn api.RegionMap
		if err := w.Client().Get(w.Context(), "/v1/map?for="+url.QueryEscape(c.number), &drawn); err != nil {
			t.Fatal(err)
		}
		out := map[string]api.Region{}
		for _, f := range drawn.Features {
			if f.Geometry.Coordinates != [2]float64{f.Properties.Longitude, f.Properties.Latitude} || f.Geometry.Coordinates[0] == 0 {
				t.Errorf("%s lies at %v", f.ID, f.Geometry)
			}
			out[string(f.ID)] = f.Properties
		}
		return out
	}
	var last int64
	for moved := 0; moved < 3; {
		now := at()
		if now["beijing"].Nearness == nil || !now["beijing"].Held || now["beijing"].CopyState != projections.InstanceReady {
			t.Fatalf("beijing holds it, and is shown as %s", JSON(now["beijing"]))
		}
		s := now["sydney"]
		if s.Held || s.CopyState != projections.InstanceCopying {
			t.Fatalf("the copy came to its end before its progress was seen: %s", JSON(s))
		}
		if s.Copy != nil && s.Copy.Done > last {
			if s.Copy.Total < s.Copy.Done || s.Copy.Step != "copying" {
				t.Fatalf("sydney is shown as %s", JSON(s.Copy))
			}
			last = s.Copy.Done
			moved++
		} else if err := pause(w.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.Region("beijing").Transfer.Slow(0)
	w.Done(c.operation)
	w.Verified(c.number, 1, "beijing", "sydney")
	s := at()["sydney"]
	if !s.Held || s.Copy != nil || s.CopyState != projections.InstanceReady || s.Nearness.Copy != 0 {
		t.Errorf("sydney holds it, and is shown as %s", JSON(s))
	}
}
