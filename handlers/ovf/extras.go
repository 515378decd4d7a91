package ovf

import (
	"encoding/json"
	"slices"

	"github.com/tombolo-vdc/tombolo/events/graph"
)

// spaceExtras is the namespace of our own section. It holds the graph as it was exported, with all that OVF has no words
// for: ids, classes of data, resources bound to a region, edges. It is ovf:required="false", so others pass over it.
const (
	spaceExtras   = "https://github.com/tombolo-vdc/tombolo/ovf/1"
	sectionExtras = "GraphSection"
)

// extras is the content of the section.
type extras struct {
	Graph graph.Graph       `json:"graph"`
	Disks map[string]string `json:"disks"` // ovf:diskId → "<node>/<item>"
}

func isExtras(e *element) bool { return e.space == spaceExtras && e.name == sectionExtras }

// restore takes the graph from the section of an earlier export, unless the rest of the descriptor was changed since:
// then what the descriptor says in the words of the standard counts.
func (p *Package) restore(d *descriptor) error {
	i := slices.IndexFunc(d.envelope.children, isExtras)
	if i < 0 || p.options.Diskless {
		return nil
	}
	section := d.envelope.children[i]
	if section.vendorAttr("rest") != d.envelope.digest(isExtras) {
		d.find(FoundExtrasStale, "envelope/"+sectionExtras, "the descriptor was changed after it was exported: what it says now counts, what OVF has no words for is lost")
		return nil
	}
	var x extras
	if err := json.Unmarshal([]byte(section.value("Graph")), &x); err != nil {
		return refuseFor(err, CodeInvalid, "the section %s cannot be read: remove it to import without it", sectionExtras)
	}
	if wrong := x.Graph.Structure(); len(wrong) > 0 {
		return refuse(CodeInvalid, "the section %s holds a graph that is wrong: %s: %s", sectionExtras, wrong[0].Path, wrong[0].Text)
	}
	idOf := map[string]string{}
	for id, name := range x.Disks {
		idOf[name] = id
	}
	var restored []Disk
	for _, ref := range x.Graph.Disks() {
		id := idOf[ref.Name()]
		at, ok := d.diskN[id]
		if !ok || d.disks[at].capacity != ref.Size {
			return refuse(CodeInvalid, "the section %s has a disk %q of %d bytes that the DiskSection does not have", sectionExtras, ref.Name(), ref.Size)
		}
		format, _ := formatOf(d.disks[at].format)
		file := d.files[d.disks[at].file]
		restored = append(restored, Disk{Node: ref.Node, Item: ref.Item.Name, ID: id, File: file.href, Size: ref.Size, Kind: format, ref: file})
	}
	p.graph, p.disks = x.Graph, restored
	return nil
}
