package services

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	nameTTL   = 30 // seconds: addresses change with the network
	askWithin = 3 * time.Second
	maxAsking = 64 // questions to the resolvers at once
)

// Names answers questions from a segment: for names of the environment, and as the resolvers do for others.
func (d *Directory) Names(ctx context.Context, segment string) dns.Handler {
	return dns.HandlerFunc(func(w dns.ResponseWriter, ask *dns.Msg) {
		network, size := "udp", dns.MinMsgSize
		if _, tcp := w.RemoteAddr().(*net.TCPAddr); tcp {
			network, size = "tcp", dns.MaxMsgSize
		} else if o := ask.IsEdns0(); o != nil {
			size = max(size, int(o.UDPSize()))
		}
		answer := d.answer(ctx, segment, network, ask)
		answer.Id = ask.Id
		answer.Truncate(size)
		_ = w.WriteMsg(answer) // who asked and has gone is answered by nobody
	})
}

func (d *Directory) answer(ctx context.Context, segment, network string, ask *dns.Msg) *dns.Msg {
	reply := new(dns.Msg)
	if ask.Opcode != dns.OpcodeQuery || len(ask.Question) != 1 {
		return reply.SetRcode(ask, dns.RcodeNotImplemented)
	}
	reply.SetReply(ask)
	reply.Authoritative, reply.RecursionAvailable = true, true
	q := ask.Question[0]
	name := strings.ToLower(strings.TrimSuffix(q.Name, "."))
	d.mu.Lock()
	domain := d.domain()
	d.mu.Unlock()
	head := dns.RR_Header{Name: q.Name, Class: dns.ClassINET, Ttl: nameTTL}

	if a, ok := reversed(name); ok {
		if host, known := d.name(segment, a); known {
			if host == "" {
				return reply.SetRcode(ask, dns.RcodeNameError)
			}
			if q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY {
				head.Rrtype = dns.TypePTR
				reply.Answer = append(reply.Answer, &dns.PTR{Hdr: head, Ptr: host + "." + domain + "."})
			}
			return reply
		}
	}
	host, local := strings.CutSuffix(name, "."+strings.ToLower(domain))
	if local = local || name != "" && !strings.Contains(name, "."); !local && !strings.EqualFold(name, domain) {
		return d.forward(ctx, network, ask)
	}
	addresses := d.addresses(segment, host)
	if len(addresses) == 0 && local {
		return reply.SetRcode(ask, dns.RcodeNameError)
	}
	if q.Qtype == dns.TypeA || q.Qtype == dns.TypeANY {
		head.Rrtype = dns.TypeA
		for _, a := range addresses {
			reply.Answer = append(reply.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
		}
	}
	return reply
}

// reversed reads the name that asks whose an IPv4 address is.
func reversed(name string) (netip.Addr, bool) {
	digits, ok := strings.CutSuffix(name, ".in-addr.arpa")
	labels := strings.Split(digits, ".")
	if !ok || len(labels) != 4 {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
	return a, err == nil
}

// forward asks the resolvers in turn, over the protocol that was asked over here.
func (d *Directory) forward(ctx context.Context, network string, ask *dns.Msg) *dns.Msg {
	failed := new(dns.Msg).SetRcode(ask, dns.RcodeServerFailure)
	select {
	case d.asking <- struct{}{}:
		defer func() { <-d.asking }()
	default:
		return failed
	}
	client := dns.Client{Net: network, Timeout: askWithin, UDPSize: dns.MaxMsgSize}
	for _, r := range d.resolvers() {
		if answer, _, err := client.ExchangeContext(ctx, ask, r.String()); err == nil {
			return answer
		}
	}
	return failed
}

// HostResolvers are those of a resolv.conf(5). One that cannot be read has none.
func HostResolvers(file string) []netip.AddrPort {
	config, err := dns.ClientConfigFromFile(file)
	if err != nil {
		return nil
	}
	var out []netip.AddrPort
	for _, s := range config.Servers {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, netip.AddrPortFrom(a, 53))
		}
	}
	return out
}
