package ovf

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/disks"
)

// Disk is a disk of the package and its place in the graph.
type Disk struct {
	Node string       // the id of the node that it belongs to
	Item string       // the name of the node's item
	ID   string       // its ovf:diskId; empty for a bare image
	File string       // its file in the package; empty: the disk is new and reads as zeros
	Size int64        // bytes as the machine sees them
	Kind disks.Format // as the descriptor says; empty: the file's first bytes decide

	ref fileRef
}

// Name is "<node>/<item>", as uploads and graph.DiskRef call the disk.
func (d Disk) Name() string { return d.Node + "/" + d.Item }

// The properties of nodes that an import sets beside those of graph.Spec ("cpus", "memory-mib", "interface-N-network").
const (
	propertyCPUs        = "cpus"
	propertyMemory      = "memory-mib"
	propertyCores       = "cores-per-socket"
	propertyFirmware    = "firmware"    // bios or efi
	propertyHardware    = "hardware"    // VirtualSystemType: "vmx-13"
	propertyOSID        = "guest-os-id" // CIM_OperatingSystem.OSType
	propertyOSType      = "guest-os-type"
	propertyOS          = "guest-os"
	propertyAnnotation  = "annotation"
	propertyDescription = "description"
	propertyProduct     = "product"
	propertyVendor      = "vendor"
	propertyVersion     = "product-version"
	propertyOrder       = "start-order"
	propertyStartDelay  = "start-delay-seconds"
	propertyStopDelay   = "stop-delay-seconds"
	propertyStart       = "start-action"
	propertyStop        = "stop-action"
	propertyWait        = "wait-for-guest"
)

// conversion makes a graph of a descriptor.
type conversion struct {
	*descriptor
	diskless bool
	graph    graph.Graph
	disks    []Disk
	taken    map[string]bool   // node ids
	networkN map[string]string // network name → node id
	attached map[string]string // disk id → the machine that has it
	macs     map[string]bool   // that interfaces have
}

// convert gives nodes and edges for what the descriptor says (DSP0243 clauses 7 to 9). With diskless, disks whose
// content would come from a file are left out, each with a finding.
func convert(d *descriptor, diskless bool) (*conversion, error) {
	c := &conversion{descriptor: d, diskless: diskless, taken: map[string]bool{}, networkN: map[string]string{}, attached: map[string]string{}, macs: map[string]bool{}}
	for _, name := range d.networks {
		if _, twice := c.networkN[name]; twice {
			return nil, refuse(CodeInvalid, "two networks are called %q (DSP0243 9.2)", name)
		}
		if _, err := c.network(name); err != nil {
			return nil, err
		}
	}
	if section := d.envelope.first("NetworkSection"); section != nil {
		for _, n := range section.all("Network") {
			if text := d.label(n, "Description"); text != "" {
				c.set(c.node(c.networkN[n.attr("name")]), propertyDescription, text)
			}
		}
	}
	if _, err := c.system(d.content); err != nil {
		return nil, err
	}
	if err := c.unattached(); err != nil {
		return nil, err
	}
	if wrong := c.graph.Structure(); len(wrong) > 0 {
		return nil, refuse(CodeInvalid, "%s: %s (%s)", wrong[0].Path, wrong[0].Text, wrong[0].Code)
	}
	return c, nil
}

// token makes a name out of any text that is a token and not taken: lower case, everything but a-z and 0-9 is "-".
func token(text, fallback string, taken map[string]bool) string {
	var b strings.Builder
	for _, r := range strings.ToLower(text) {
		switch {
		case r >= 'a' && r <= 'z' || r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() == 63 {
			break
		}
	}
	base := strings.Trim(b.String(), "-")
	if base == "" {
		base = fallback
	}
	name := base
	for i := 2; taken[name]; i++ {
		suffix := "-" + strconv.Itoa(i)
		name = strings.TrimRight(base[:min(len(base), 63-len(suffix))], "-") + suffix
	}
	taken[name] = true
	return name
}

func (c *conversion) node(id string) *graph.Node {
	for i := range c.graph.Nodes {
		if c.graph.Nodes[i].ID == id {
			return &c.graph.Nodes[i]
		}
	}
	return nil
}

func (c *conversion) set(n *graph.Node, name, value string) {
	if value == "" {
		return
	}
	if n.Properties == nil {
		n.Properties = map[string]string{}
	}
	n.Properties[name] = value
}

// network gives the node of a network, which is made if it is new.
func (c *conversion) network(name string) (string, error) {
	if id, ok := c.networkN[name]; ok {
		return id, nil
	}
	if len(c.graph.Nodes) >= graph.MaxNodes {
		return "", refuse(CodeInvalid, "more than %d virtual systems and networks", graph.MaxNodes)
	}
	id := token(name, "network", c.taken)
	c.networkN[name] = id
	c.graph.Nodes = append(c.graph.Nodes, graph.Node{ID: id, Type: graph.Network, Name: name})
	return id, nil
}

// system makes the node of a VirtualSystem or VirtualSystemCollection (DSP0243 7.2, 7.3) and of all within.
func (c *conversion) system(e *element) (string, error) {
	name := e.attr("id")
	if name == "" {
		return "", refuse(CodeInvalid, "a %s without an id (DSP0243 7.2)", e.kind())
	}
	if len(c.graph.Nodes) >= graph.MaxNodes {
		return "", refuse(CodeInvalid, "more than %d virtual systems and networks", graph.MaxNodes)
	}
	n := graph.Node{Type: graph.VApp, Name: name}
	machine := e.kind() == "VirtualSystem"
	if machine {
		n.Type, n.Power = graph.Machine, graph.Running
	}
	n.ID = token(name, string(n.Type), c.taken)
	if label := c.label(e, "Name"); label != "" {
		n.Name = label
	}
	at := len(c.graph.Nodes)
	c.graph.Nodes = append(c.graph.Nodes, n)
	children := map[string]string{} // ovf:id → node id
	hardware, products := false, map[string]bool{}
	for _, s := range e.children {
		path := "nodes/" + n.ID
		if !s.standard() {
			if err := c.unknown(s, path); err != nil {
				return "", err
			}
			continue
		}
		var err error
		switch kind := s.kind(); kind {
		case "Info", "Name":
		case "VirtualSystem", "VirtualSystemCollection":
			if machine {
				return "", refuse(CodeInvalid, "virtual system %q holds another one: only a VirtualSystemCollection can (DSP0243 7.2)", name)
			}
			id := s.attr("id")
			if _, twice := children[id]; twice {
				return "", refuse(CodeInvalid, "%q holds two virtual systems with the id %q", name, id)
			}
			if children[id], err = c.system(s); err == nil {
				c.graph.Edges = append(c.graph.Edges, graph.Edge{Type: graph.Contains, From: n.ID, To: children[id]})
			}
		case "AnnotationSection":
			c.set(&c.graph.Nodes[at], propertyAnnotation, c.label(s, "Annotation"))
		case "OperatingSystemSection":
			c.operatingSystem(&c.graph.Nodes[at], s)
		case "ProductSection":
			product := s.attr("class") + "." + s.attr("instance")
			if products[product] {
				return "", refuse(CodeInvalid, "%q has two ProductSections of one class and instance (DSP0243 9.5)", name)
			}
			products[product] = true
			err = c.product(&c.graph.Nodes[at], s)
		case "VirtualHardwareSection":
			if !machine {
				err = misplaced(s, path)
			} else if !hardware {
				hardware = true
				err = c.hardware(at, chooseHardware(e.all("VirtualHardwareSection")))
			}
		case "StartupSection": // below, when all ids are known
		default:
			switch {
			case !slices.Contains(applied, kind):
				err = c.unknown(s, path)
			case kind == "NetworkSection" || kind == "DiskSection" || kind == "DeploymentOptionSection" || machine && kind == "ResourceAllocationSection":
				err = misplaced(s, path)
			}
		}
		if err != nil {
			return "", err
		}
	}
	for _, s := range e.all("StartupSection") {
		if err := c.startup(s, children, n.ID); err != nil {
			return "", err
		}
	}
	if machine && !hardware {
		return "", refuse(CodeInvalid, "virtual system %q has no VirtualHardwareSection (DSP0243 8)", name)
	}
	return n.ID, nil
}

// operatingSystem is DSP0243 9.10.
func (c *conversion) operatingSystem(n *graph.Node, s *element) {
	c.set(n, propertyOSID, s.attr("id"))
	c.set(n, propertyOSType, s.vendorAttr("osType"))
	c.set(n, propertyOS, c.label(s, "Description"))
}

// product keeps the properties of a ProductSection as settings (DSP0243 9.5); a setting's whole key is the class, the
// key and the instance.
func (c *conversion) product(n *graph.Node, s *element) error {
	if n.Properties[propertyProduct] == "" {
		c.set(n, propertyProduct, c.label(s, "Product"))
		c.set(n, propertyVendor, c.label(s, "Vendor"))
		c.set(n, propertyVersion, c.label(s, "Version"))
	}
	whole := map[string]bool{}
	for _, p := range s.all("Property") {
		key := p.attr("key")
		if key == "" {
			return refuse(CodeInvalid, "a Property of %q has no key (DSP0243 9.5.1)", n.Name)
		}
		if whole[key] {
			return refuse(CodeInvalid, "a ProductSection of %q has the property %q twice (DSP0243 9.5.1)", n.Name, key)
		}
		whole[key] = true
		if t := p.attr("type"); !slices.Contains(propertyTypes, strings.ToLower(t)) {
			return refuse(CodeInvalid, "property %q of %q has the type %q, which DSP0243 9.5.1 does not have", key, n.Name, t)
		}
		value := p.attr("value")
		for _, v := range p.all("Value") {
			if v.attr("configuration") == c.configuration && c.configuration != "" {
				value = v.attr("value")
			}
		}
		if isTrue(p.attr("password")) && value != "" {
			c.find(FoundPassword, "nodes/"+n.ID, "the default of the password property %q is not kept: set it where the machine runs", key)
			value = ""
		}
		taken, err := itemNames(n)
		if err != nil {
			return err
		}
		if class := s.attr("class"); class != "" {
			key = class + "." + key
		}
		if instance := s.attr("instance"); instance != "" {
			key += "." + instance
		}
		it := graph.Item{Name: token(key, "setting", taken), Class: graph.ConfigurationData, Kind: graph.Setting, Value: value, Size: int64(len(value))}
		if it.Name != key {
			c.set(n, "setting-"+it.Name+"-key", key)
		}
		n.Items = append(n.Items, it)
	}
	return nil
}

// propertyTypes are those of DSP0243 9.5.1 table 6, and what VMware's tools add.
var propertyTypes = []string{"uint8", "sint8", "uint16", "sint16", "uint32", "sint32", "uint64", "sint64", "string", "boolean",
	"real32", "real64", "real", "int", "ip", "password", "expression"}

// startup reads start order, delays and actions (DSP0243 9.8): what starts later depends on all that start with the
// order before it. Order 0 means at any time.
func (c *conversion) startup(s *element, children map[string]string, parent string) error {
	groups := map[int64][]string{}
	for _, item := range s.all("Item") {
		id, ok := children[item.attr("id")]
		if !ok {
			c.find(FoundStartup, "nodes/"+parent, "the start order names %q, which %q does not hold", item.attr("id"), parent)
			continue
		}
		order, err := strconv.ParseInt(item.attr("order"), 10, 32)
		if err != nil || order < 0 {
			return refuse(CodeInvalid, "the start order of %q is %q: a whole number is wanted (DSP0243 9.8)", id, item.attr("order"))
		}
		n := c.node(id)
		c.set(n, propertyOrder, strconv.FormatInt(order, 10))
		for attr, property := range map[string]string{"startDelay": propertyStartDelay, "stopDelay": propertyStopDelay, "startAction": propertyStart,
			"stopAction": propertyStop, "waitingForGuest": propertyWait} {
			c.set(n, property, item.attr(attr))
		}
		if n.Type == graph.Machine && item.attr("startAction") == "none" {
			n.Power = graph.PoweredOff
		}
		if order > 0 && !slices.Contains(groups[order], id) {
			groups[order] = append(groups[order], id)
		}
	}
	orders := make([]int64, 0, len(groups))
	for order := range groups {
		orders = append(orders, order)
	}
	slices.Sort(orders)
	for i := 1; i < len(orders); i++ {
		for _, later := range groups[orders[i]] {
			for _, earlier := range groups[orders[i-1]] {
				if later != earlier {
					c.graph.Edges = append(c.graph.Edges, graph.Edge{Type: graph.DependsOn, From: later, To: earlier})
				}
			}
		}
		if len(c.graph.Edges) > maxEdges {
			return refuse(CodeDescriptorSize, "the start order makes more than %d dependencies: use smaller groups", maxEdges)
		}
	}
	return nil
}

const maxEdges = 100_000

// unattached makes volumes of disks that no machine has.
func (c *conversion) unattached() error {
	for _, disk := range c.descriptor.disks {
		if _, ok := c.attached[disk.id]; ok || disk.file == "" {
			continue
		}
		if c.diskless {
			c.find(FoundDiskAbsent, "disks/"+disk.id, "the disk belongs to no machine and is left out with its content")
			continue
		}
		id := token(disk.id, "volume", c.taken)
		c.graph.Nodes = append(c.graph.Nodes, graph.Node{ID: id, Type: graph.Volume, Name: disk.id})
		if err := c.attach(len(c.graph.Nodes)-1, disk); err != nil {
			return err
		}
	}
	return nil
}

// attach adds a disk to a node.
func (c *conversion) attach(at int, disk virtualDisk) error {
	n := &c.graph.Nodes[at]
	if other, twice := c.attached[disk.id]; twice {
		c.find(FoundDiskShared, "nodes/"+n.ID, "disk %q is attached to %q as well: each gets a copy", disk.id, other)
	}
	c.attached[disk.id] = n.ID
	ref := c.files[disk.file]
	if c.diskless && disk.file != "" {
		c.find(FoundDiskAbsent, "nodes/"+n.ID, "disk %q (%s) is left out, as asked", disk.id, ref.href)
		return nil
	}
	if disk.parent != "" {
		return refuse(CodeParentDisk, "disk %q holds only the changes over disk %q: flatten it before it is exported, or import without disks", disk.id, disk.parent)
	}
	taken, err := itemNames(n)
	if err != nil {
		return err
	}
	format, known := formatOf(disk.format)
	if !known && disk.file != "" {
		c.find(FoundFormat, "nodes/"+n.ID, "disk %q has the format %q, which is not known: its first bytes decide", disk.id, disk.format)
	}
	d := Disk{Node: n.ID, Item: token(disk.id, "disk", taken), ID: disk.id, File: ref.href, Size: disk.capacity, Kind: format, ref: ref}
	n.Items = append(n.Items, graph.Item{Name: d.Item, Class: graph.ProductionData, Kind: graph.Disk, Size: d.Size})
	c.disks = append(c.disks, d)
	return nil
}

// itemNames are those that the node's items have. Their number is limited, because each new name is compared with them.
func itemNames(n *graph.Node) (map[string]bool, error) {
	if len(n.Items) >= maxItems {
		return nil, refuse(CodeDescriptorSize, "%q has more than %d disks and properties", n.Name, maxItems)
	}
	taken := map[string]bool{}
	for _, it := range n.Items {
		taken[it.Name] = true
	}
	return taken, nil
}

const (
	maxItems      = 2000 // of a node
	maxInterfaces = 1000 // of a machine
)

// Format URIs that are written; more are known (formatOf).
const (
	formatVMDK  = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"
	formatQCOW2 = "http://www.gnome.org/~markmc/qcow-image-format.html"
	formatRaw   = "http://en.wikipedia.org/wiki/Byte"
)

// formatOf knows the URIs that tools write for a disk's format (DSP0243 5.2 leaves them to the formats' owners).
func formatOf(uri string) (disks.Format, bool) {
	base, _, _ := strings.Cut(uri, "#")
	switch {
	case strings.HasSuffix(base, "/specifications/vmdk.html"):
		if strings.HasSuffix(uri, "#monolithicFlat") {
			return "", true
		}
		return disks.VMDK, true
	case strings.Contains(base, "qcow"):
		return disks.QCOW2, true
	case base == formatRaw:
		return disks.Raw, true
	}
	return "", false
}

func interfaceProperty(i int, what string) string { return fmt.Sprintf("interface-%d-%s", i, what) }
