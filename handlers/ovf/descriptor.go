package ovf

import (
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/tombolo-vdc/tombolo/events/graph"
)

// fileRef is a file of the package (DSP0243 7.1, References).
type fileRef struct {
	id, href    string
	size        int64 // in the package; -1 when the descriptor does not say
	compression string
	outside     error // why it cannot be a file of this package; it matters when the file is wanted
	chunk       int64 // the file is in parts of that many bytes, "<href>.000000000" and on; 0 when it is one
}

// remote says that the file is somewhere else, which DSP0243 7.1 allows and which is never fetched here.
func (f fileRef) remote() bool { return strings.Contains(f.href, "://") }

// virtualDisk is a disk of the DiskSection (DSP0243 9.1).
type virtualDisk struct {
	id, file, format, parent string
	capacity                 int64
}

// descriptor is an envelope whose package-level parts were read: files, disks, networks and the chosen configuration.
// Virtual systems are read from content when the graph is made.
type descriptor struct {
	envelope      *element
	content       *element           // VirtualSystem or VirtualSystemCollection
	files         map[string]fileRef // by id
	order         []string           // their ids, as listed
	disks         []virtualDisk
	diskN         map[string]int // disk id → place in disks
	networks      []string
	configuration string            // of DeploymentOptionSection (DSP0243 9.12)
	properties    map[string]string // defaults of ProductSection properties, for "${…}"
	messages      map[string]string // Strings (DSP0243 10), by message id
	findings      []graph.Finding
}

func (d *descriptor) find(code, path, format string, args ...any) {
	d.findings = append(d.findings, graph.Finding{Code: code, Path: path, Text: fmt.Sprintf(format, args...)})
}

// readDescriptor reads an envelope of OVF 2.x, 1.x or 0.9.
func readDescriptor(data []byte) (*descriptor, error) {
	root, err := parseXML(data)
	if err != nil {
		return nil, err
	}
	if root.name != "Envelope" || !ofEnvelope(root.space) {
		return nil, refuse(CodeNotEnvelope, "the root element is %q of %q: an OVF descriptor is an Envelope of %s", root.name, root.space, space1)
	}
	if v := root.attr("version"); v != "" {
		if major, _, _ := strings.Cut(v, "."); major != "0" && major != "1" && major != "2" {
			return nil, refuse(CodeNotEnvelope, "OVF version %q: 0.9, 1.x and 2.x are read", v)
		}
	}
	d := &descriptor{envelope: root, files: map[string]fileRef{}, diskN: map[string]int{}, properties: map[string]string{}, messages: map[string]string{}}
	if root.space == space09 {
		d.find(FoundOldFormat, "envelope", "the descriptor is of OVF 0.9, which came before the standard")
	}
	for _, c := range root.children {
		if err := d.section(c); err != nil {
			return nil, err
		}
	}
	if d.content == nil {
		return nil, refuse(CodeInvalid, "the envelope has no VirtualSystem and no VirtualSystemCollection (DSP0243 6)")
	}
	for _, p := range d.content.all("ProductSection") {
		for _, property := range p.all("Property") {
			d.properties[property.attr("key")] = property.attr("value")
		}
	}
	if err := d.readFiles(); err != nil {
		return nil, err
	}
	return d, d.readDisks()
}

// section sorts one child of the envelope.
func (d *descriptor) section(c *element) error {
	switch kind := c.kind(); {
	case kind == "Strings": // its namespace is not always declared
		for _, m := range c.all("Msg") {
			d.messages[m.attr("msgid")] = strings.TrimSpace(m.text)
		}
	case !c.standard():
		return d.unknown(c, "envelope")
	case kind == "VirtualSystem" || kind == "VirtualSystemCollection":
		if d.content != nil {
			return refuse(CodeInvalid, "the envelope has two virtual systems side by side: DSP0243 6 wants them in one VirtualSystemCollection")
		}
		d.content = c
	case kind == "NetworkSection":
		for _, n := range c.all("Network") {
			if n.attr("name") == "" {
				return refuse(CodeInvalid, "a Network without a name (DSP0243 9.2)")
			}
			d.networks = append(d.networks, n.attr("name"))
		}
	case kind == "DeploymentOptionSection":
		for _, o := range c.all("Configuration") {
			if d.configuration == "" || isTrue(o.attr("default")) {
				d.configuration = o.attr("id")
			}
		}
	case kind == "References" || kind == "DiskSection" || kind == "SharedDiskSection" || kind == "PlacementGroupSection" || kind == "EnvironmentFilesSection":
	case d.envelope.space == space09 && (kind == "EulaSection" || kind == "ProductSection" || kind == "AnnotationSection"):
	case slices.Contains(applied, kind):
		return misplaced(c, "the envelope")
	default:
		return d.unknown(c, "envelope")
	}
	return nil
}

// applied are the sections of the standard whose content has a place in a graph, and those that only inform people.
var applied = []string{"AnnotationSection", "ProductSection", "EulaSection", "OperatingSystemSection", "VirtualHardwareSection",
	"StartupSection", "ResourceAllocationSection", "InstallSection", "DiskSection", "NetworkSection", "DeploymentOptionSection",
	"EnvironmentFilesSection", "BootDeviceSection", "SharedDiskSection", "ScaleOutSection", "PlacementGroupSection", "PlacementSection"}

// harmless are sections of vendors that say where in their own product a machine is put, or repeat what the standard
// part says. Passing over them changes no machine, so they do not stop an import even though they do not say
// ovf:required="false".
func harmless(e *element) bool {
	switch e.space {
	case spaceVM, "vmw":
		switch e.kind() {
		case "IpAssignmentSection", "TagBasedPlacementSection", "TagBasedPlacementGroupSection", "StorageSection", "StorageGroupSection",
			"BootOrderSection", "CpuCompatibilitySection", "VirtualDeviceGroupSection":
			return true
		}
	case "http://www.virtualbox.org/ovf/machine", "vbox":
		return true
	}
	return strings.HasPrefix(e.space, "http://www.vmware.com/vcloud/")
}

// unknown decides about a section that has no meaning here. It is required unless it says otherwise, and a required one
// that is not understood stops the import (DSP0243 6, ovf:required).
func (d *descriptor) unknown(e *element, path string) error {
	required, said := e.lookup("required")
	switch {
	case strings.EqualFold(required, "false"), !said && harmless(e), e.name == "Info":
		if e.name != "Info" && e.space != spaceExtras {
			d.find(FoundSectionIgnored, path+"/"+e.kind(), "the section is not required and has no meaning here")
		}
		return nil
	}
	return refuse(CodeSectionRequired, "%s needs section %q of %q to be understood, and it is not known here: export without it, "+
		"or set ovf:required=\"false\" on it if the machines work without", path, e.kind(), e.space)
}

// misplaced refuses a section of the standard that stands where the standard does not have it (DSP0243 9, table 4).
func misplaced(e *element, place string) error {
	return refuse(CodeInvalid, "%s holds a %s, which has no meaning there (DSP0243 9)", place, e.kind())
}

func isTrue(s string) bool { return strings.EqualFold(s, "true") || s == "1" }

// readFiles reads References (DSP0243 7.1).
func (d *descriptor) readFiles() error {
	references := d.envelope.first("References")
	if references == nil {
		return refuse(CodeInvalid, "the envelope has no References (DSP0243 7.1)")
	}
	for _, e := range references.all("File") {
		f := fileRef{id: e.attr("id"), href: e.attr("href"), size: -1, compression: e.attr("compression")}
		if f.id == "" || f.href == "" {
			return refuse(CodeInvalid, "a File in References needs an id and an href (DSP0243 7.1)")
		}
		if _, twice := d.files[f.id]; twice {
			return refuse(CodeInvalid, "two files in References have the id %q (DSP0243 7.1)", f.id)
		}
		var err error
		if f.size, err = number(e, "size", -1); err != nil {
			f.outside = err
		}
		if f.chunk, err = number(e, "chunkSize", 0); err != nil {
			return err
		}
		if name, err := localName(f.href); err == nil {
			f.href = name
		} else if !f.remote() {
			f.outside = err
		}
		if c := f.compression; c != "" && c != "identity" && c != "gzip" {
			return refuse(CodeCompression, "file %q is compressed by %q: unpack it, or use gzip", f.href, c)
		}
		d.files[f.id] = f
		d.order = append(d.order, f.id)
	}
	return nil
}

// number reads an attribute that is a number of bytes.
func number(e *element, name string, missing int64) (int64, error) {
	s, ok := e.lookup(name)
	if !ok {
		return missing, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 {
		return 0, refuse(CodeInvalid, "%s of %s %q is %q: a whole number of bytes is wanted", name, e.name, e.attr("id"), s)
	}
	return n, nil
}

// localName checks that a name leads to a file inside the package, and undoes URL escapes in it.
func localName(name string) (string, error) {
	if plain, err := url.PathUnescape(name); err == nil {
		name = plain
	}
	name = strings.TrimPrefix(name, "./")
	if len(name) > 1024 || strings.ContainsAny(name, "\\\x00") || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' }) ||
		!filepath.IsLocal(filepath.FromSlash(name)) || filepath.ToSlash(filepath.Clean(name)) != name || name == "." {
		return "", refuse(CodeHref, "%.80q is not the name of a file inside the package", name)
	}
	return name, nil
}

var reference = regexp.MustCompile(`^\$\{(.+)\}$`)

// readDisks reads the DiskSection (DSP0243 9.1).
func (d *descriptor) readDisks() error {
	for _, section := range d.envelope.all("DiskSection") {
		for _, e := range section.all("Disk") {
			disk := virtualDisk{id: e.attr("diskId"), file: e.attr("fileRef"), format: e.attr("format"), parent: e.attr("parentRef")}
			_, twice := d.diskN[disk.id]
			switch {
			case disk.id == "":
				return refuse(CodeInvalid, "a Disk needs a diskId (DSP0243 9.1)")
			case twice:
				return refuse(CodeInvalid, "two disks have the diskId %q (DSP0243 9.1)", disk.id)
			}
			if _, ok := d.files[disk.file]; disk.file != "" && !ok {
				return refuse(CodeInvalid, "disk %q is in file %q, which References does not have (DSP0243 9.1)", disk.id, disk.file)
			}
			capacity := e.attr("capacity")
			if name := reference.FindStringSubmatch(capacity); name != nil {
				capacity = d.properties[name[1]]
			}
			n, err := strconv.ParseInt(capacity, 10, 64)
			unit, ok := parseUnit(e.attr("capacityAllocationUnits"))
			if err == nil && ok {
				n, ok = multiply(n, unit)
			}
			switch {
			case err != nil || !ok || n <= 0:
				return refuse(CodeInvalid, "disk %q has the capacity %q in units of %q: a positive whole number of bytes is wanted (DSP0243 9.1)",
					disk.id, e.attr("capacity"), e.attr("capacityAllocationUnits"))
			case n > graph.MaxDiskSize:
				return refuse(CodeInvalid, "disk %q has %d bytes, %d are allowed", disk.id, n, int64(graph.MaxDiskSize))
			}
			disk.capacity = (n + 511) / 512 * 512
			d.diskN[disk.id] = len(d.disks)
			d.disks = append(d.disks, disk)
		}
	}
	return nil
}

// label gives the text of a child, or the message that stands for it (DSP0243 10).
func (d *descriptor) label(e *element, name string) string {
	c := e.first(name)
	if c == nil {
		return ""
	}
	if m, ok := d.messages[c.attr("msgid")]; ok && c.attr("msgid") != "" {
		return m
	}
	return strings.TrimSpace(c.text)
}
