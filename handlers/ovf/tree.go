package ovf

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf16"
)

// element is one XML element. Descriptors are read into a tree first: which sections are known and which are required
// is then a question to the tree (DSP0243 clause 6), and nothing a stranger wrote is lost on the way.
type element struct {
	space, name string
	attrs       []xml.Attr
	text        string // all character data, joined
	children    []*element
}

const (
	maxDepth    = 64
	maxElements = 200_000
	maxSigns    = 200_000 // of equality in one token
)

// errTooManySigns ends the reading of a tag that would need too much memory.
var errTooManySigns = errors.New("a tag with too many attributes")

// tokenReader feeds the XML decoder byte by byte, which makes it read no further than it needs to. It counts the signs
// that stand in every attribute, because the decoder gives all attributes of a tag at once, however many they are.
type tokenReader struct {
	data  []byte
	at    int
	signs int // so far in this token
}

func (r *tokenReader) ReadByte() (byte, error) {
	if r.at == len(r.data) {
		return 0, io.EOF
	}
	b := r.data[r.at]
	if b == '=' {
		if r.signs++; r.signs > maxSigns {
			return 0, errTooManySigns
		}
	}
	r.at++
	return b, nil
}

func (r *tokenReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	b, err := r.ReadByte()
	if err != nil {
		return 0, err
	}
	p[0] = b
	return 1, nil
}

// parseXML reads a document into a tree. Document type declarations are refused, so there are no entities to expand.
func parseXML(data []byte) (*element, error) {
	data, err := toUTF8(data)
	if err != nil {
		return nil, err
	}
	in := &tokenReader{data: data}
	decoder := xml.NewDecoder(in)
	decoder.CharsetReader = func(charset string, from io.Reader) (io.Reader, error) {
		switch strings.ToLower(charset) {
		case "us-ascii", "ascii", "utf-16":
			return from, nil
		}
		return nil, fmt.Errorf("encoding %q: convert it to UTF-8", charset)
	}
	var root *element
	var path []*element
	var texts [][]byte // of the elements in path: joined once, at their end
	count := 0
	for {
		in.signs = 0
		token, err := decoder.Token()
		switch {
		case errors.Is(err, io.EOF) && root != nil && len(path) == 0:
			return root, nil
		case errors.Is(err, errTooManySigns):
			return nil, refuseFor(err, CodeDescriptorSize, "the descriptor cannot be read")
		case err != nil:
			return nil, refuseFor(err, CodeXML, "the descriptor is not well-formed XML")
		}
		switch t := token.(type) {
		case xml.Directive:
			return nil, refuse(CodeXMLForbidden, "the descriptor has a document type declaration, which no OVF needs; remove it")
		case xml.StartElement:
			if count++; count > maxElements || len(path) == maxDepth {
				return nil, refuse(CodeDescriptorSize, "more than %d elements, or nested deeper than %d", maxElements, maxDepth)
			}
			e := &element{space: t.Name.Space, name: t.Name.Local, attrs: slices.Clone(t.Attr)}
			switch {
			case len(path) > 0:
				parent := path[len(path)-1]
				parent.children = append(parent.children, e)
			case root != nil:
				return nil, refuse(CodeXML, "the descriptor has two root elements")
			default:
				root = e
			}
			path, texts = append(path, e), append(texts, nil)
		case xml.EndElement:
			last := len(path) - 1
			path[last].text = string(texts[last])
			path, texts = path[:last], texts[:last]
		case xml.CharData:
			if last := len(path) - 1; last >= 0 {
				texts[last] = append(texts[last], t...)
			}
		}
	}
}

// toUTF8 removes a byte order mark and converts UTF-16, which some Windows tools write.
func toUTF8(data []byte) ([]byte, error) {
	if rest, ok := bytes.CutPrefix(data, []byte("\xEF\xBB\xBF")); ok {
		return rest, nil
	}
	little := bytes.HasPrefix(data, []byte("\xFF\xFE"))
	if !little && !bytes.HasPrefix(data, []byte("\xFE\xFF")) {
		return data, nil
	}
	if len(data)%2 != 0 {
		return nil, refuse(CodeXML, "the descriptor is UTF-16 with half a character")
	}
	units := make([]uint16, 0, len(data)/2)
	for i := 2; i < len(data); i += 2 {
		if little {
			units = append(units, uint16(data[i])|uint16(data[i+1])<<8)
		} else {
			units = append(units, uint16(data[i+1])|uint16(data[i])<<8)
		}
	}
	return []byte(string(utf16.Decode(units))), nil
}

// namespaces of the OVF envelope: 2.x, 1.x, and the 0.9 that VMware and VirtualBox wrote before it was a standard. A
// prefix that was not declared stands for itself.
func ofEnvelope(space string) bool {
	switch space {
	case "", "ovf", "http://schemas.dmtf.org/ovf/envelope/1", "http://schemas.dmtf.org/ovf/envelope/2", space09:
		return true
	}
	return false
}

const (
	space1  = "http://schemas.dmtf.org/ovf/envelope/1"
	space09 = "http://www.vmware.com/schema/ovf/1/envelope"
	spaceVM = "http://www.vmware.com/schema/ovf"
	spaceXS = "http://www.w3.org/2001/XMLSchema-instance"
)

// kind is what the element is: its name, or in OVF 0.9 its type (<Section xsi:type="ovf:DiskSection_Type">).
func (e *element) kind() string {
	if e.name == "Section" || e.name == "Content" {
		for _, a := range e.attrs {
			if a.Name.Local == "type" && (a.Name.Space == spaceXS || a.Name.Space == "xsi") {
				_, local, found := strings.Cut(a.Value, ":")
				if !found {
					local = a.Value
				}
				return strings.TrimSuffix(local, "_Type")
			}
		}
	}
	return e.name
}

// standard says whether the element is one of the envelope's own.
func (e *element) standard() bool { return ofEnvelope(e.space) }

// lookup gives an attribute of the envelope's namespace or of none.
func (e *element) lookup(name string) (string, bool) {
	for _, a := range e.attrs {
		if a.Name.Local == name && ofEnvelope(a.Name.Space) {
			return strings.TrimSpace(a.Value), true
		}
	}
	return "", false
}

func (e *element) attr(name string) string {
	v, _ := e.lookup(name)
	return v
}

// vendorAttr gives an attribute whatever its namespace is.
func (e *element) vendorAttr(name string) string {
	for _, a := range e.attrs {
		if a.Name.Local == name {
			return strings.TrimSpace(a.Value)
		}
	}
	return ""
}

// all gives the children of one kind.
func (e *element) all(kind string) []*element {
	var out []*element
	for _, c := range e.children {
		if c.kind() == kind {
			out = append(out, c)
		}
	}
	return out
}

// first gives the first child of one kind, or nil.
func (e *element) first(kind string) *element {
	for _, c := range e.children {
		if c.kind() == kind {
			return c
		}
	}
	return nil
}

// value is the text of the first child of that name.
func (e *element) value(name string) string {
	if c := e.first(name); c != nil {
		return strings.TrimSpace(c.text)
	}
	return ""
}

// digest is over the tree without the children that skip picks out: order of attributes, prefixes, comments and
// white space between elements do not count.
func (e *element) digest(skip func(*element) bool) string {
	h := sha256.New()
	var walk func(*element)
	walk = func(e *element) {
		fmt.Fprintf(h, "<%q %q", e.space, e.name)
		var attrs []string
		for _, a := range e.attrs {
			if a.Name.Space != "xmlns" && a.Name.Local != "xmlns" {
				attrs = append(attrs, fmt.Sprintf(" %q %q=%q", a.Name.Space, a.Name.Local, a.Value))
			}
		}
		slices.Sort(attrs)
		fmt.Fprintf(h, "%s>%q", strings.Join(attrs, ""), strings.TrimSpace(e.text))
		for _, c := range e.children {
			if !skip(c) {
				walk(c)
			}
		}
		io.WriteString(h, "</>")
	}
	walk(e)
	return hex.EncodeToString(h.Sum(nil))
}
