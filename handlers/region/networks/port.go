// Package networks is the port to a region's networks: layer-2 segments that machines are plugged into, and an edge for each
// environment that gives addresses and names, routes, translates and filters. What a Substrate makes carries its owner and
// can be listed from the host alone.
//
// A network is declarative: Apply makes it be as described, whatever it was before, and Diff says what that changes.
package networks

import (
	"context"
	"net/netip"

	"github.com/tombolo-vdc/tombolo/handlers/fault"
)

// Code is a stable, searchable name for a kind of failure.
type Code string

// The codes of networks.
const (
	NetworkUnknown  Code = "network-unknown"  // no such environment, segment or port
	NetworkInvalid  Code = "network-invalid"  // it contradicts itself; the text says where
	AddressConflict Code = "address-conflict" // two ports of a segment, or a port and the gateway, have one address
	DuplicateMAC    Code = "duplicate-mac"    // two ports of a segment, or a port and the edge, have one MAC
	BindFailed      Code = "bind-failed"      // a public address cannot be bound where the region says: taken, or not of this host
	PlugFailed      Code = "plug-failed"      // no machine listens where a port is plugged in; it is tried again until Unplug
	Unsupported     Code = "unsupported"      // this substrate cannot do it; Capabilities says so
	StaleEpoch      Code = "stale-epoch"      // an agent that has lost the region
)

// CodeOf gives the outermost of these codes in err's chain, or "" where there is none.
func CodeOf(err error) Code { return fault.CodeOf[Code](err) }

// Errorf makes an error with a code.
func Errorf(code Code, format string, args ...any) error { return fault.New(code, format, args...) }

// Wrap makes an error with a code and a cause.
func Wrap(code Code, err error, format string, args ...any) error {
	return fault.Wrap(code, err, format, args...)
}

// Network is all that one environment has of networks.
type Network struct {
	Environment string    `json:"environment"`
	Owner       string    `json:"owner"` // the work order that it was made for
	Epoch       int       `json:"epoch"` // of the agent that asks
	Segments    []Segment `json:"segments"`
	Edge        Edge      `json:"edge"`
}

// Segment is one layer-2 network: every frame reaches the port that its destination was learned at, or all.
type Segment struct {
	ID      string       `json:"id"`               // unique in the environment
	Subnet  netip.Prefix `json:"subnet,omitzero"`  // IPv4; none: frames only, no edge
	Gateway netip.Addr   `json:"gateway,omitzero"` // of the edge, within the subnet; none: isolated, nothing is routed in or out
	DHCP    bool         `json:"dhcp,omitempty"`   // the edge leases the ports' addresses (RFC 2131), and others of the subnet to whom it does not know
	DNS     bool         `json:"dns,omitempty"`    // the edge answers for machines' names, and asks the host's resolver for others
	MTU     int          `json:"mtu"`              // bytes of payload; 0: 1500
	Ports   []Port       `json:"ports"`
}

// Port is where a machine's interface is plugged in.
type Port struct {
	Machine   string     `json:"machine"`
	Interface int        `json:"interface"` // from 0
	MAC       string     `json:"mac"`
	Address   netip.Addr `json:"address,omitzero"`
}

// PortID names a port of a region.
type PortID struct {
	Environment string `json:"environment"`
	Machine     string `json:"machine"`
	Interface   int    `json:"interface"`
}

// Edge is what stands between an environment's segments, and between them and everything else.
type Edge struct {
	Publics []Public `json:"publics,omitempty"`
	Rules   []Rule   `json:"rules,omitempty"` // the first that matches decides
	// SourcePorts are those that translated connections to the outside use, for each public address or, without one,
	// for the edge; none: any. When all are in use, a new connection is refused and counted.
	SourcePorts PortRange `json:"source_ports,omitzero"`
}

// Public is a public address of a machine, and where the region really binds it: port p of Address is port p+PortOffset of
// Bind. Without Bind it is bound as itself.
type Public struct {
	Address    netip.Addr `json:"address"`
	Bind       netip.Addr `json:"bind,omitzero"`
	PortOffset int        `json:"port_offset,omitempty"`
	Target     netip.Addr `json:"target"` // of the machine, within a routed segment; its connections to the outside come from Address
	Open       []Forward  `json:"open,omitempty"`
}

// Forward lets connections to a public port in.
type Forward struct {
	Protocol Protocol   `json:"protocol"`
	Port     uint16     `json:"port"`            // of the public address
	To       uint16     `json:"to,omitempty"`    // of the machine; 0: the same
	Target   netip.Addr `json:"target,omitzero"` // another machine than the public address's own
	Last     uint16     `json:"last,omitempty"`  // a pool of ports: Port to Last, to To and those after it
}

// Protocol is one of those that rules know.
type Protocol string

// The protocols.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	ICMP Protocol = "icmp"
)

// PortRange is ports from First to Last.
type PortRange struct {
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
}

// Rule decides on new connections that cross the edge: between segments, to the outside, and from there. What belongs to a
// connection that was let through is let through in both directions. Without a rule that matches: between routed segments
// and to the outside yes, from the outside only what a Public opens.
type Rule struct {
	Allow    bool           `json:"allow"`
	Protocol Protocol       `json:"protocol,omitempty"` // empty: all
	From     []netip.Prefix `json:"from,omitempty"`     // empty: everywhere; inner addresses of machines, outer ones of the outside
	To       []netip.Prefix `json:"to,omitempty"`       // empty: everywhere; behind a public address the machine's inner one
	Ports    []PortRange    `json:"ports,omitempty"`    // destination ports; empty: all
}

// Attachment is how a machine's interface is plugged into a port. One of the two.
type Attachment struct {
	Socket string `json:"socket,omitempty"` // the machine listens there, see machines.NIC; Plug connects
	Tap    string `json:"tap,omitempty"`    // name of a tap device
	// Namespace is the path of the network namespace that the tap is in.
	Namespace string `json:"namespace,omitempty"`
}

// Counters are those of one port since it was made, as seen from the segment.
type Counters struct {
	PortID
	Segment               string `json:"segment"`
	Plugged               bool   `json:"plugged"`
	InFrames, InBytes     uint64 // from the machine
	OutFrames, OutBytes   uint64 // to the machine
	InDropped, OutDropped uint64 // malformed or not of its MAC; its queue was full
	Parked                uint64 // frames that wait for it now
}

// EdgeCounters are those of one edge since it was made.
type EdgeCounters struct {
	Environment    string
	Connections    uint64 // now, in all directions
	Opened         uint64
	Refused        uint64 // by a rule, or for want of one
	PortsExhausted uint64 // refused for want of a source port
	InBytes        uint64 // from the outside
	OutBytes       uint64
}

// Capabilities says what the substrate can do on this host.
type Capabilities struct {
	Name         string `json:"name"` // "user", "kernel"
	Available    bool   `json:"available"`
	Why          string `json:"why,omitempty"` // not available
	LoopbackBind bool   `json:"loopback_bind"` // public addresses can be bound to 127.0.0.0/8
	KeepsClient  bool   `json:"keeps_client"`  // a machine sees the address of who connects from the outside, not the gateway's; never a loopback one
	Outlives     bool   `json:"outlives"`      // connections through the edge outlive the agent
	Offloads     bool   `json:"offloads"`      // segments carry frames with offloads (virtio-net header)
	Parks        bool   `json:"parks"`
	Echo         bool   `json:"echo"` // machines' ICMP echoes reach the outside; the host may forbid it
}

// Reader is the part of a substrate that changes nothing. All methods are safe for concurrent use.
type Reader interface {
	Capabilities(ctx context.Context) (Capabilities, error)
	// List gives the networks that the host shows, as they are, also those that nobody remembers.
	List(ctx context.Context) ([]Network, error)
	// Network gives one as it is. Error: network-unknown.
	Network(ctx context.Context, environment string) (Network, error)
	Counters(ctx context.Context) ([]Counters, []EdgeCounters, error)
}

// Writer is the part of a substrate that changes the host. Every method may be called again after any crash, and done twice
// is done once. A call of an agent with an older epoch than one seen is refused: stale-epoch.
type Writer interface {
	// Apply makes the network be as described. Segments, ports, addresses and rules that the description does not have go,
	// exactly; what stays is not disturbed: connections that the new rules still allow go on. Before an error nothing was
	// changed. Errors: network-invalid, address-conflict, duplicate-mac, bind-failed, unsupported.
	Apply(ctx context.Context, n Network) error
	// Remove takes away everything of an environment. One that is not there: nothing.
	Remove(ctx context.Context, epoch int, environment string) error
	// Attachment makes ready where the machine is to be plugged in, and says how. Error: network-unknown.
	Attachment(ctx context.Context, epoch int, p PortID) (Attachment, error)
	// Plug connects the port to the machine, which is there; it is connected again when the connection breaks and the
	// machine still listens. Unplug disconnects it. Errors: network-unknown, plug-failed.
	Plug(ctx context.Context, epoch int, p PortID) error
	Unplug(ctx context.Context, epoch int, p PortID) error
	// Park keeps frames for the port's MAC, at most ParkedFrames, until Release sends them on to wherever the MAC is then.
	// Errors: network-unknown, unsupported.
	Park(ctx context.Context, epoch int, p PortID) error
	Release(ctx context.Context, epoch int, p PortID) error
}

// ParkedFrames is how many frames are kept for a machine that is on its way; the oldest go first.
const ParkedFrames = 4096

// Substrate makes networks.
type Substrate interface {
	Reader
	Writer
	// Close lets go of the networks: one whose networks outlive it leaves them.
	Close() error
}
