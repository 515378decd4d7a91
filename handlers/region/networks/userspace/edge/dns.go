package edge

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks/userspace/segment"
)

const (
	nameTTL        = 30 // seconds: addresses change with the network
	askTimeout     = 3 * time.Second
	maxAsking      = 64         // questions to the host's resolvers at once, for each segment
	internalDomain = "internal" // reserved for private use by ICANN's board, 2024-07-29
)

// domain is what follows a machine's name.
func (e *Edge) domain() string { return e.environment + "." + internalDomain }

// nameServer answers for names of the environment, and asks the host's resolvers for others.
type nameServer struct {
	nic     *nic
	servers [2]*dns.Server
	ended   sync.WaitGroup
	asking  chan struct{}
	ctx     context.Context
	end     context.CancelFunc
}

func newNameServer(n *nic) (*nameServer, error) {
	at := n.full(netip.AddrPortFrom(n.addr, portDNS))
	packets, err := gonet.DialUDP(n.edge.stack, &at, nil, ipv4.ProtocolNumber)
	if err != nil {
		return nil, err
	}
	streams, err := gonet.ListenTCP(n.edge.stack, at, ipv4.ProtocolNumber)
	if err != nil {
		packets.Close()
		return nil, err
	}
	s := &nameServer{nic: n, asking: make(chan struct{}, maxAsking)}
	s.ctx, s.end = context.WithCancel(n.edge.ctx)
	s.servers = [2]*dns.Server{{PacketConn: packets, Handler: s}, {Listener: streams, Handler: s}}
	for _, server := range s.servers {
		started := make(chan struct{})
		server.NotifyStartedFunc = func() { close(started) }
		s.ended.Go(func() { _ = server.ActivateAndServe() })
		<-started
	}
	return s, nil
}

func (s *nameServer) close() {
	s.end()
	for _, server := range s.servers {
		ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
		_ = server.ShutdownContext(ctx) // the sockets go with the stack in any case
		cancel()
	}
	s.ended.Wait()
}

// ServeDNS answers one question.
func (s *nameServer) ServeDNS(w dns.ResponseWriter, ask *dns.Msg) {
	_, tcp := w.RemoteAddr().(*net.TCPAddr)
	answer := s.answer(ask, tcp)
	answer.Id = ask.Id
	if !tcp {
		size := dns.MinMsgSize
		if o := ask.IsEdns0(); o != nil {
			size = max(size, int(o.UDPSize()))
		}
		answer.Truncate(size)
	}
	_ = w.WriteMsg(answer)
}

func (s *nameServer) answer(ask *dns.Msg, tcp bool) *dns.Msg {
	reply := new(dns.Msg)
	if ask.Opcode != dns.OpcodeQuery || len(ask.Question) != 1 {
		return reply.SetRcode(ask, dns.RcodeNotImplemented)
	}
	q := ask.Question[0]
	name := strings.ToLower(q.Name)
	reply.SetReply(ask)
	reply.Authoritative, reply.RecursionAvailable = true, true
	if address, ok := reversed(name); ok && s.nic.edge.now.Load().owns(address) {
		host := s.nameOf(address)
		switch {
		case host == "":
			return reply.SetRcode(ask, dns.RcodeNameError)
		case q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY:
			head := dns.RR_Header{Name: q.Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: nameTTL}
			reply.Answer = append(reply.Answer, &dns.PTR{Hdr: head, Ptr: host + "." + s.nic.edge.domain() + "."})
		}
		return reply
	}
	host, local := strings.CutSuffix(name, "."+s.nic.edge.domain()+".")
	if !local {
		host = strings.TrimSuffix(name, ".")
		local = host != "" && !strings.Contains(host, ".") // a single label is nobody's but ours
	}
	if !local && name != s.nic.edge.domain()+"." {
		return s.forward(ask, tcp)
	}
	addresses := s.addressesOf(host)
	if len(addresses) == 0 && local {
		return reply.SetRcode(ask, dns.RcodeNameError)
	}
	if q.Qtype == dns.TypeA || q.Qtype == dns.TypeANY {
		for _, a := range addresses {
			head := dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: nameTTL}
			reply.Answer = append(reply.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
		}
	}
	return reply
}

// owns says whether an address is of one of the edge's segments.
func (v *view) owns(a netip.Addr) bool {
	for _, n := range v.nics {
		if n.segment.Subnet.Contains(a) {
			return true
		}
	}
	return false
}

// reversed reads the name that asks whose an address is.
func reversed(name string) (netip.Addr, bool) {
	labels := strings.Split(strings.TrimSuffix(name, ".in-addr.arpa."), ".")
	if len(labels) != 4 || !strings.HasSuffix(name, ".in-addr.arpa.") {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
	return a, err == nil
}

// reachable are the edge's interfaces whose machines this segment's can reach, its own first.
func (s *nameServer) reachable() []*nic {
	out := []*nic{s.nic}
	for _, n := range s.nic.edge.now.Load().nics {
		if n != s.nic && n.segment.Routed() && s.nic.segment.Routed() {
			out = append(out, n)
		}
	}
	return out
}

// addressesOf gives those of a machine; those in the segment that asks come first.
func (s *nameServer) addressesOf(machine string) []netip.Addr {
	var out []netip.Addr
	for _, n := range s.reachable() {
		for mac, p := range n.plan.Load().ports {
			if !strings.EqualFold(p.Machine, machine) {
				continue
			}
			if a := n.addressOf(mac, p.Address); a.IsValid() {
				out = append(out, a)
			}
		}
	}
	return out
}

func (n *nic) addressOf(mac segment.MAC, planned netip.Addr) netip.Addr {
	if !planned.IsValid() && n.dhcp != nil {
		return n.dhcp.address(mac)
	}
	return planned
}

// nameOf gives the machine that has an address; "": nobody, as far as this segment can see.
func (s *nameServer) nameOf(a netip.Addr) string {
	for _, n := range s.reachable() {
		p := n.plan.Load()
		mac, ok := p.macs[a]
		if !ok && n.dhcp != nil {
			mac, ok = n.dhcp.who(a)
		}
		if port, planned := p.ports[mac]; ok && planned {
			return strings.ToLower(port.Machine)
		}
	}
	return ""
}

// forward asks the host's resolvers in turn, in the way that was asked here.
func (s *nameServer) forward(ask *dns.Msg, tcp bool) *dns.Msg {
	failed := new(dns.Msg).SetRcode(ask, dns.RcodeServerFailure)
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	default:
		return failed
	}
	client := dns.Client{Net: "udp", Timeout: askTimeout, UDPSize: dns.MaxMsgSize}
	if tcp {
		client.Net = "tcp"
	}
	for _, server := range s.nic.edge.cfg.Resolvers() {
		if answer, _, err := client.ExchangeContext(s.ctx, ask, server.String()); err == nil {
			return answer
		}
	}
	return failed
}

// HostResolvers reads a resolv.conf(5). One that cannot be read has none.
func HostResolvers(file string) []netip.AddrPort {
	config, err := dns.ClientConfigFromFile(file)
	if err != nil {
		return nil
	}
	var out []netip.AddrPort
	for _, server := range config.Servers {
		if a, err := netip.ParseAddr(server); err == nil {
			out = append(out, netip.AddrPortFrom(a, portDNS))
		}
	}
	return out
}
