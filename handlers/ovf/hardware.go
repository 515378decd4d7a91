package ovf

import (
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tombolo-vdc/tombolo/events/graph"
)

// Resource types of CIM_ResourceAllocationSettingData that mean something here (DSP0243 8.3; CIM schema 2.22).
const (
	cimProcessor = 3
	cimMemory    = 4
	cimIDE       = 5
	cimSCSI      = 6
	cimEthernet  = 10
	cimCD        = 15
	cimDVD       = 16
	cimDisk      = 17
	cimOther     = 20 // other storage device: a SATA controller
	cimUSB       = 23
	cimGraphics  = 24
	cimLogical   = 31
	cimVolume    = 32
	cimLast      = 35 // of the types that tools write: a sound card
	cimVendor    = 0x8000
)

const (
	maxCPUs   = 4096
	maxMemory = 64 << 40 // bytes
)

const spaceCIM = "http://schemas.dmtf.org/wbem/wscim/1/"

// chooseHardware takes one of several alternative sections (DSP0243 8.1): the first of a family that is virtual
// hardware everywhere, else the first.
func chooseHardware(sections []*element) *element {
	for _, s := range sections {
		if system := s.first("System"); system != nil {
			types := strings.ToLower(system.value("VirtualSystemType"))
			for _, family := range []string{"vmx-", "virtualbox-", "kvm", "qemu", "dmtf:ovf"} {
				if strings.Contains(types, family) {
					return s
				}
			}
		}
	}
	return sections[0]
}

// item is one virtual device.
type item struct {
	*element
	kind     int64
	required bool
}

// hardware gives a machine its processors, memory, interfaces and disks (DSP0243 clause 8).
func (c *conversion) hardware(at int, section *element) error {
	n := &c.graph.Nodes[at]
	if system := section.first("System"); system != nil {
		c.set(n, propertyHardware, system.value("VirtualSystemType"))
	}
	for _, config := range slices.Concat(section.all("Config"), section.all("ExtraConfig")) {
		if config.vendorAttr("key") == "firmware" {
			c.set(n, propertyFirmware, strings.ToLower(config.vendorAttr("value")))
		}
	}
	items, err := c.items(n, section)
	if err != nil {
		return err
	}
	var cpus, memory int64
	var interfaces int
	ignored := map[int64]bool{}
	for _, it := range items {
		switch it.kind {
		case cimProcessor, cimMemory:
			if it.first("VirtualQuantity") == nil {
				continue // a reservation or a limit
			}
			q, err := quantity(it)
			if err != nil {
				return refuseFor(err, CodeInvalid, "machine %q", n.Name)
			}
			if it.kind == cimProcessor {
				cpus += q
				c.set(n, propertyCores, it.value("CoresPerSocket"))
			} else {
				memory += q
			}
			if cpus > maxCPUs || memory > maxMemory {
				return refuse(CodeInvalid, "machine %q has %d processors and %d bytes of memory; %d and %d are allowed", n.Name, cpus, memory, maxCPUs, int64(maxMemory))
			}
		case cimEthernet:
			if err := c.connect(n.ID, interfaces, it); err != nil {
				return err
			}
			n = &c.graph.Nodes[at] // networks may have been added
			interfaces++
		case cimDisk, cimLogical, cimVolume:
			if err := c.diskItem(at, it); err != nil {
				return err
			}
		case cimIDE, cimSCSI, cimOther, cimUSB, cimGraphics:
		default:
			if ignored[it.kind] {
				continue
			}
			ignored[it.kind] = true
			c.find(FoundDeviceIgnored, "nodes/"+n.ID, "%s (resource type %d) has no place in an environment", it.value("ElementName"), it.kind)
		}
	}
	if cpus > 0 {
		c.set(n, propertyCPUs, strconv.FormatInt(cpus, 10))
	}
	if memory > 0 {
		c.set(n, propertyMemory, strconv.FormatInt((memory+1<<20-1)>>20, 10))
	}
	return nil
}

// items gives the devices of the chosen configuration: those of it replace those without one that have the same
// instance id (DSP0243 9.12), and bounds are not devices (DSP0243 8.4).
func (c *conversion) items(n *graph.Node, section *element) ([]item, error) {
	var out []item
	place := map[string]int{}
	for _, e := range section.children {
		switch e.name {
		case "Item", "StorageItem", "EthernetPortItem":
		default:
			continue
		}
		configurations := strings.Fields(e.attr("configuration"))
		if bound := e.attr("bound"); bound == "min" || bound == "max" || len(configurations) > 0 && !slices.Contains(configurations, c.configuration) {
			continue
		}
		for _, child := range e.children {
			if !strings.HasPrefix(child.space, spaceCIM) && isTrue(child.attr("required")) {
				return nil, refuse(CodeHardwareRequired, "a device of machine %q needs %q of %q to be understood, and it is not known here", n.Name, child.name, child.space)
			}
		}
		it := item{element: e, required: !strings.EqualFold(e.attr("required"), "false")}
		var err error
		if it.kind, err = strconv.ParseInt(e.value("ResourceType"), 10, 32); err != nil || it.kind <= 0 {
			return nil, refuse(CodeInvalid, "machine %q has a device with the resource type %q (DSP0243 8.3)", n.Name, e.value("ResourceType"))
		}
		if it.kind > cimLast && it.kind < cimVendor {
			if it.required {
				return nil, refuse(CodeHardwareRequired, "machine %q needs a device of type %d (%s), which no CIM schema has: remove it, or say ovf:required=\"false\"",
					n.Name, it.kind, e.value("ElementName"))
			}
			c.find(FoundDeviceIgnored, "nodes/"+n.ID, "a device of the unknown type %d is left out", it.kind)
			continue
		}
		instance := e.value("InstanceID")
		if instance == "" {
			instance = e.value("InstanceId") // OVF 0.9
		}
		if instance == "" {
			return nil, refuse(CodeInvalid, "machine %q has a device of type %d without an InstanceID (DSP0243 8.3)", n.Name, it.kind)
		}
		if i, twice := place[instance]; twice {
			if len(configurations) == 0 && out[i].attr("configuration") == "" && e.attr("bound") == "" && out[i].attr("bound") == "" {
				return nil, refuse(CodeInvalid, "machine %q has two devices with the InstanceID %q (DSP0243 8.3)", n.Name, instance)
			}
			if len(configurations) > 0 {
				out[i] = it
			}
			continue
		}
		place[instance] = len(out)
		out = append(out, it)
	}
	return out, nil
}

// quantity is the number of processors, or of bytes of memory. Memory without units is taken for bytes when it is a
// plausible number of them, else for MiB: what writers without units mean.
func quantity(it item) (int64, error) {
	q, err := strconv.ParseInt(it.value("VirtualQuantity"), 10, 64)
	if err != nil || q <= 0 {
		return 0, refuse(CodeInvalid, "%s has the quantity %q: a positive whole number is wanted (DSP0243 8.3)", it.value("ElementName"), it.value("VirtualQuantity"))
	}
	if it.kind == cimProcessor {
		return q, nil
	}
	units := it.value("AllocationUnits")
	unit, ok := parseUnit(units)
	if units == "" && q < 1<<20 {
		unit = 1 << 20
	}
	if ok {
		q, ok = multiply(q, unit)
	}
	if !ok || q > maxMemory {
		return 0, refuse(CodeInvalid, "%d units of %q are no memory size (DSP0004 annex C)", q, units)
	}
	return q, nil
}

// connect joins a machine to the networks of an interface.
func (c *conversion) connect(id string, i int, it item) error {
	if i == maxInterfaces {
		return refuse(CodeDescriptorSize, "machine %q has more than %d interfaces", id, maxInterfaces)
	}
	n := c.node(id)
	if mac, err := net.ParseMAC(it.value("Address")); err == nil {
		switch text := mac.String(); {
		case len(mac) != 6 || mac[0]&1 != 0 || [6]byte(mac) == [6]byte{}:
			c.find(FoundMAC, "nodes/"+id, "no machine can have the MAC %s: interface %d gets another one", text, i)
		case c.macs[text]:
			c.find(FoundMAC, "nodes/"+id, "the MAC %s stands twice in the package: interface %d gets another one", text, i)
		default:
			c.macs[text] = true
			c.set(n, interfaceProperty(i, "mac"), text)
		}
	}
	c.set(n, interfaceProperty(i, "model"), strings.ToLower(it.value("ResourceSubType")))
	for _, e := range it.all("Connection") {
		name := strings.TrimSpace(e.text)
		if name == "" {
			continue
		}
		if _, ok := c.networkN[name]; !ok {
			c.find(FoundNetwork, "nodes/"+id, "an interface is connected to %q, which the NetworkSection does not have: it is added", name)
		}
		network, err := c.network(name)
		if err != nil {
			return err
		}
		if n = c.node(id); n.Properties[interfaceProperty(i, "network")] == "" {
			c.set(n, interfaceProperty(i, "network"), network)
		}
		edge := graph.Edge{Type: graph.Connects, From: id, To: network}
		if !slices.Contains(c.graph.Edges, edge) {
			c.graph.Edges = append(c.graph.Edges, edge)
		}
	}
	return nil
}

var hostDisk = regexp.MustCompile(`^(?:ovf:)?/*(disk|file)/(.+)$`)

// diskItem attaches the disk that a drive's HostResource names: ovf:/disk/<diskId>, or ovf:/file/<id> for a disk that is
// a file as it stands (DSP0243 8.3).
func (c *conversion) diskItem(at int, it item) error {
	n := &c.graph.Nodes[at]
	host := it.value("HostResource")
	m := hostDisk.FindStringSubmatch(host)
	if m == nil {
		if !it.required || host == "" {
			c.find(FoundDeviceIgnored, "nodes/"+n.ID, "drive %q has no disk", it.value("ElementName"))
			return nil
		}
		return refuse(CodeInvalid, "drive %q of machine %q is backed by %q: ovf:/disk/ and a diskId is wanted (DSP0243 8.3)", it.value("ElementName"), n.Name, host)
	}
	if m[1] == "disk" {
		if i, ok := c.diskN[m[2]]; ok {
			return c.attach(at, c.descriptor.disks[i])
		}
	}
	return refuse(CodeInvalid, "drive %q of machine %q is backed by %q, which the DiskSection does not have (DSP0243 9.1)", it.value("ElementName"), n.Name, host)
}
