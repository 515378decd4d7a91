package ovf

import (
	"bytes"
	"cmp"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/disks"
)

// el makes an element of a descriptor; names carry their prefix. Attributes come in pairs.
func el(name string, attrs ...string) *element {
	e := &element{name: name}
	for i := 0; i+1 < len(attrs); i += 2 {
		e.attrs = append(e.attrs, xml.Attr{Name: xml.Name{Local: attrs[i]}, Value: attrs[i+1]})
	}
	return e
}

func (e *element) add(children ...*element) *element {
	e.children = append(e.children, children...)
	return e
}

func (e *element) say(text string) *element {
	e.text = text
	return e
}

// section makes a section with its obligatory Info (DSP0243 9).
func sectionOf(name, info string, attrs ...string) *element {
	return el(name, attrs...).add(el("ovf:Info").say(info))
}

// render writes an element as text.
func (e *element) render(b *bytes.Buffer, indent string) {
	b.WriteString(indent + "<" + e.name)
	for _, a := range e.attrs {
		b.WriteString(" " + a.Name.Local + "=\"")
		escape(b, a.Value)
		b.WriteString("\"")
	}
	switch {
	case len(e.children) > 0:
		b.WriteString(">\n")
		for _, c := range e.children {
			c.render(b, indent+"  ")
		}
		b.WriteString(indent + "</" + e.name + ">\n")
	case e.text != "":
		b.WriteString(">")
		escape(b, e.text)
		b.WriteString("</" + e.name + ">\n")
	default:
		b.WriteString("/>\n")
	}
}

// escape writes text so that it is read as it was.
func escape(b *bytes.Buffer, s string) {
	_ = xml.EscapeText(b, []byte(s)) // fails only as its writer does, and a buffer never does
}

// description makes a descriptor of a graph.
type description struct {
	graph   graph.Graph
	options WriteOptions
	network map[string]string        // node id → its name in the NetworkSection
	diskID  map[string]string        // "<node>/<item>" → ovf:diskId
	inside  map[string][]*graph.Node // container → what it holds
	bases   map[string]bool          // disks that are below another one: no machine has them attached
}

// describe writes the envelope (DSP0243 6, version 1.0 of it, which every tool reads).
func describe(g graph.Graph, files []outFile, options WriteOptions) ([]byte, error) {
	d := &description{graph: g, options: options, network: map[string]string{}, diskID: map[string]string{}, inside: map[string][]*graph.Node{}, bases: map[string]bool{}}
	references, diskSection := el("ovf:References"), sectionOf("ovf:DiskSection", "The disks of the package")
	extra := extras{Graph: withoutDigests(g), Disks: map[string]string{}}
	for i, ref := range g.Disks() {
		file, disk := fmt.Sprintf("file%d", i+1), fmt.Sprintf("vmdisk%d", i+1)
		d.diskID[ref.Name()], extra.Disks[disk] = disk, ref.Name()
		if ref.Base != "" {
			d.bases[ref.Node+"/"+ref.Base] = true
		}
		references.add(el("ovf:File", "ovf:id", file, "ovf:href", strings.ReplaceAll(files[i].name, "%", "%25"), "ovf:size", strconv.FormatInt(files[i].size, 10)))
		diskSection.add(el("ovf:Disk", "ovf:diskId", disk, "ovf:fileRef", file, "ovf:capacity", strconv.FormatInt(ref.Size, 10),
			"ovf:capacityAllocationUnits", "byte", "ovf:format", uriOf(options.Format)))
	}
	root := el("ovf:Envelope", "ovf:version", "1.0", "xml:lang", "en-US", "xmlns", space1, "xmlns:ovf", space1,
		"xmlns:rasd", spaceCIM+"cim-schema/2/CIM_ResourceAllocationSettingData", "xmlns:vssd", spaceCIM+"cim-schema/2/CIM_VirtualSystemSettingData",
		"xmlns:vmw", spaceVM, "xmlns:tombolo", spaceExtras)
	root.add(references)
	if len(diskSection.children) > 1 {
		root.add(diskSection)
	}
	root.add(d.networks())
	content, err := d.content()
	if err != nil {
		return nil, err
	}
	// The section that restores the graph knows the digest of all else, as a reader sees it.
	text, err := json.Marshal(extra)
	if err != nil {
		return nil, err
	}
	rest, err := parseXML(envelope(root, content))
	if err != nil {
		return nil, err
	}
	root.add(sectionOf("tombolo:"+sectionExtras, "The resource graph as Tombolo has it", "ovf:required", "false",
		"tombolo:rest", rest.digest(isExtras)).add(el("tombolo:Graph").say(string(text))))
	return envelope(root, content), nil
}

// withoutDigests leaves out where disks are stored, which means nothing elsewhere.
func withoutDigests(g graph.Graph) graph.Graph {
	out := graph.Graph{Nodes: slices.Clone(g.Nodes), Edges: g.Edges}
	for i := range out.Nodes {
		out.Nodes[i].Items = slices.Clone(out.Nodes[i].Items)
		for j := range out.Nodes[i].Items {
			out.Nodes[i].Items[j].Digest = ""
		}
	}
	return out
}

func envelope(root, content *element) []byte {
	whole := *root
	whole.children = append(slices.Clone(root.children), content)
	b := bytes.NewBufferString("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n")
	whole.render(b, "")
	return b.Bytes()
}

func uriOf(f disks.Format) string {
	if f == disks.Raw {
		return formatRaw
	}
	return formatVMDK
}

// networks is the NetworkSection (DSP0243 9.2). Names are those that people gave, as long as they are unique.
func (d *description) networks() *element {
	section := sectionOf("ovf:NetworkSection", "The networks that machines are connected to")
	taken := map[string]bool{}
	for _, n := range d.graph.Nodes {
		if n.Type != graph.Network {
			continue
		}
		name := strings.TrimSpace(n.Name)
		if name == "" || taken[name] {
			name = n.ID
		}
		taken[name], d.network[n.ID] = true, name
		section.add(el("ovf:Network", "ovf:name", name).add(el("ovf:Description").say(cmp.Or(n.Properties[propertyDescription], name))))
	}
	return section
}

// content is the machine, if there is one and no group, or a collection of all machines and groups.
func (d *description) content() (*element, error) {
	held := map[string]bool{}
	for _, e := range d.graph.Edges {
		to, ok := d.graph.Node(e.To)
		if e.Type == graph.Contains && ok && (to.Type == graph.Machine || to.Type == graph.VApp) && !held[e.To] {
			if from, ok := d.graph.Node(e.From); ok && from.Type == graph.VApp {
				held[e.To] = true
				d.inside[e.From] = append(d.inside[e.From], &to)
			}
		}
	}
	var top []*graph.Node
	for i := range d.graph.Nodes {
		if n := &d.graph.Nodes[i]; (n.Type == graph.Machine || n.Type == graph.VApp) && !held[n.ID] {
			top = append(top, n)
		}
	}
	if len(top) == 1 {
		return d.system(top[0]), nil
	}
	if len(top) == 0 {
		return nil, refuse(CodeNotExportable, "the graph has no machine: there is nothing that OVF describes")
	}
	id := "environment"
	for i := 2; ; i++ {
		if _, taken := d.graph.Node(id); !taken {
			break
		}
		id = "environment-" + strconv.Itoa(i)
	}
	return d.collection(id, d.options.Name, nil, top), nil
}

func (d *description) system(n *graph.Node) *element {
	if n.Type == graph.VApp {
		return d.collection(n.ID, n.Name, n, d.inside[n.ID])
	}
	e := sectionOf("ovf:VirtualSystem", "A virtual machine", "ovf:id", n.ID).add(el("ovf:Name").say(n.Name))
	d.about(e, n)
	system := sectionOf("ovf:OperatingSystemSection", "The guest operating system", "ovf:id", cmp.Or(n.Properties[propertyOSID], "1"))
	if t := n.Properties[propertyOSType]; t != "" {
		system.attrs = append(system.attrs, xml.Attr{Name: xml.Name{Local: "vmw:osType"}, Value: t})
	}
	if text := n.Properties[propertyOS]; text != "" {
		system.add(el("ovf:Description").say(text))
	}
	return e.add(system, d.hardware(n))
}

func (d *description) collection(id, name string, n *graph.Node, children []*graph.Node) *element {
	e := sectionOf("ovf:VirtualSystemCollection", "A group of virtual machines", "ovf:id", id).add(el("ovf:Name").say(name))
	if n != nil {
		d.about(e, n)
	}
	if startup := d.startup(children); startup != nil {
		e.add(startup)
	}
	for _, c := range children {
		e.add(d.system(c))
	}
	return e
}

// about is what people wrote: the annotation (DSP0243 9.4) and settings as product properties (DSP0243 9.5).
func (d *description) about(e *element, n *graph.Node) {
	if text := n.Properties[propertyAnnotation]; text != "" {
		e.add(sectionOf("ovf:AnnotationSection", "A note").add(el("ovf:Annotation").say(text)))
	}
	product := sectionOf("ovf:ProductSection", "The software and its settings")
	for _, pair := range [][2]string{{"ovf:Product", propertyProduct}, {"ovf:Vendor", propertyVendor}, {"ovf:Version", propertyVersion}} {
		if text := n.Properties[pair[1]]; text != "" {
			product.add(el(pair[0]).say(text))
		}
	}
	for _, it := range n.Items {
		if it.Kind == graph.Setting {
			key := cmp.Or(n.Properties["setting-"+it.Name+"-key"], it.Name)
			product.add(el("ovf:Property", "ovf:key", key, "ovf:type", "string", "ovf:value", it.Value))
		}
	}
	if len(product.children) > 1 {
		e.add(product)
	}
}

// startup gives each machine of a group the order that its dependencies want (DSP0243 9.8).
func (d *description) startup(children []*graph.Node) *element {
	level := map[string]int{}
	for _, c := range children {
		level[c.ID] = 1
	}
	known := false
	for _, id := range d.graph.Order() { // dependencies come first
		if level[id] == 0 {
			continue
		}
		for _, e := range d.graph.Edges {
			if e.Type == graph.DependsOn && e.From == id && level[e.To] > 0 {
				level[id], known = max(level[id], level[e.To]+1), true
			}
		}
	}
	section := sectionOf("ovf:StartupSection", "The order in which machines start")
	for _, c := range children {
		item := el("ovf:Item", "ovf:id", c.ID, "ovf:order", strconv.Itoa(level[c.ID]))
		if !known {
			item.attrs[1].Value = "0"
		}
		for _, pair := range [][2]string{{"ovf:startDelay", propertyStartDelay}, {"ovf:waitingForGuest", propertyWait}, {"ovf:startAction", propertyStart},
			{"ovf:stopDelay", propertyStopDelay}, {"ovf:stopAction", propertyStop}} {
			value := c.Properties[pair[1]]
			if pair[0] == "ovf:startAction" && c.Type == graph.Machine && c.Power != graph.Running {
				value = "none"
			}
			if value != "" {
				item.attrs = append(item.attrs, xml.Attr{Name: xml.Name{Local: pair[0]}, Value: value})
				known = true
			}
		}
		section.add(item)
	}
	if !known {
		return nil
	}
	return section
}

// hardware is the VirtualHardwareSection (DSP0243 8).
func (d *description) hardware(n *graph.Node) *element {
	s := sectionOf("ovf:VirtualHardwareSection", "Virtual hardware")
	s.add(el("ovf:System").add(el("vssd:ElementName").say("Virtual Hardware Family"), el("vssd:InstanceID").say("0"),
		el("vssd:VirtualSystemIdentifier").say(n.ID), el("vssd:VirtualSystemType").say(cmp.Or(n.Properties[propertyHardware], "vmx-13"))))
	instance := 0
	// rasd elements stand in alphabetical order (DSP0243 8.3).
	item := func(fields map[string]string) string {
		instance++
		id := strconv.Itoa(instance)
		fields["InstanceID"] = id
		e := el("ovf:Item")
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			e.add(el("rasd:" + name).say(fields[name]))
		}
		s.add(e)
		return id
	}
	cpus, memory := strconv.Itoa(n.CPUs()), strconv.FormatInt(n.MemoryBytes()>>20, 10)
	item(map[string]string{"AllocationUnits": "hertz * 10^6", "Description": "Number of virtual CPUs", "ElementName": cpus + " virtual CPU(s)",
		"ResourceType": "3", "VirtualQuantity": cpus})
	item(map[string]string{"AllocationUnits": "byte * 2^20", "Description": "Memory size", "ElementName": memory + " MB of memory",
		"ResourceType": "4", "VirtualQuantity": memory})
	d.drives(n, item)
	for i, network := range d.interfaces(n) {
		fields := map[string]string{"AddressOnParent": strconv.Itoa(i), "AutomaticAllocation": "true", "ElementName": fmt.Sprintf("Network adapter %d", i+1),
			"ResourceSubType": model(n.Properties[interfaceProperty(i, "model")]), "ResourceType": "10"}
		if network != "" {
			fields["Connection"] = d.network[network]
		}
		if mac := n.Properties[interfaceProperty(i, "mac")]; mac != "" {
			fields["Address"] = mac
		}
		item(fields)
	}
	if firmware := n.Properties[propertyFirmware]; firmware != "" {
		s.add(el("vmw:Config", "ovf:required", "false", "vmw:key", "firmware", "vmw:value", firmware))
	}
	return s
}

// drives puts the disks on SCSI controllers, 15 on each; place 7 is the controller's own.
func (d *description) drives(n *graph.Node, item func(map[string]string) string) {
	controller, place, controllers := "", 0, 0
	for i := range n.Items {
		it := n.Items[i]
		if it.Kind != graph.Disk || d.bases[n.ID+"/"+it.Name] {
			continue
		}
		if controller == "" || place == 16 {
			controller = item(map[string]string{"Address": strconv.Itoa(controllers), "ElementName": fmt.Sprintf("SCSI controller %d", controllers),
				"ResourceSubType": "lsilogic", "ResourceType": "6"})
			controllers, place = controllers+1, 0
		}
		item(map[string]string{"AddressOnParent": strconv.Itoa(place), "ElementName": it.Name, "HostResource": "ovf:/disk/" + d.diskID[n.ID+"/"+it.Name],
			"Parent": controller, "ResourceType": "17"})
		if place++; place == 7 {
			place++
		}
	}
}

// interfaces lists the networks of a machine's interfaces, in their order; edges without one come last.
func (d *description) interfaces(n *graph.Node) []string {
	var out []string
	for i := 0; ; i++ {
		network, ok := n.Properties[interfaceProperty(i, "network")]
		_, has := n.Properties[interfaceProperty(i, "model")]
		if !ok && !has {
			break
		}
		if d.network[network] == "" {
			network = ""
		}
		out = append(out, network)
	}
	for _, e := range d.graph.Edges {
		if e.Type == graph.Connects && e.From == n.ID && d.network[e.To] != "" && !slices.Contains(out, e.To) {
			out = append(out, e.To)
		}
	}
	return out
}

// model is an interface's model in the spelling that tools know.
func model(name string) string {
	switch strings.ToLower(name) {
	case "pcnet32":
		return "PCNet32"
	case "vmxnet3":
		return "VmxNet3"
	case "virtio":
		return "virtio"
	}
	return "E1000"
}
