package graph

import "github.com/tombolo-vdc/tombolo/events"

// ManifestFormat is the version of the manifest's form.
const ManifestFormat = 1

// Manifest is the saved state of a graph: content-addressed by the digest of
// its canonical JSON (RFC 8785), signed beside it by the control plane. Nothing
// region-bound is in it but the source's own values, so it is equal in all
// regions.
type Manifest struct {
	Format      int                  `json:"format"`
	Environment events.EnvironmentID `json:"environment"` // where it was saved from
	Region      events.RegionID      `json:"region"`
	Depth       Class                `json:"depth"` // the deepest class held
	Graph       Graph                `json:"graph"`
	Order       []string             `json:"order"` // node ids, dependencies first
}

// Bytes is the size of all disks, and of the memory, as machines see them.
func (m Manifest) Bytes() int64 {
	var n int64
	for _, d := range m.Graph.Stored() {
		n += d.Size
	}
	return n
}
