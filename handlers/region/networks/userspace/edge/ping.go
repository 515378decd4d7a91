package edge

import (
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
)

// The bounds of echoes.
const (
	maxPings = 256
	pingIdle = 15 * time.Second
)

// pingKey is what an echo and its answer have in common.
type pingKey struct {
	from, to netip.Addr
	id       uint16
}

// ping is a machine's exchange of echoes with the outside: the host asks in its place, by a socket that needs no privilege
// where the host lets its users have them (net.ipv4.ping_group_range).
type ping struct {
	conn *icmp.PacketConn
	at   net.Addr
}

// CanEcho says whether this host lets its users send echoes.
func CanEcho() bool {
	conn, err := icmp.ListenPacket("udp4", "0.0.0.0")
	return err == nil && conn.Close() == nil
}

func (p *ping) close() { p.conn.Close() }

// ping sends an echo of a machine to the outside.
func (e *Edge) ping(v *view, n *nic, p *inbound) {
	echo := header.ICMPv4(p.payload)
	k := pingKey{p.from, p.to, echo.Ident()}
	e.mu.Lock()
	defer e.mu.Unlock()
	flow := e.pings[k]
	if flow == nil {
		to := netip.AddrPortFrom(p.to, 0)
		at, ok := e.cfg.Directory.Resolve(networks.ICMP, to)
		if !ok || !v.allows(networks.ICMP, p.from, to) || len(e.pings) >= maxPings || e.ctx.Err() != nil {
			e.counts.Refused.Add(1)
			return
		}
		conn, err := icmp.ListenPacket("udp4", "0.0.0.0")
		if err != nil { // this host lets nobody
			e.counts.Refused.Add(1)
			return
		}
		flow = &ping{conn, &net.UDPAddr{IP: at.Addr().AsSlice()}}
		e.pings[k] = flow
		e.counts.Opened.Add(1)
		e.running.Add(1)
		go e.pongs(k, flow, n, append([]byte(nil), p.frame[6:12]...))
	}
	message := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{
		ID: int(k.id), Seq: int(echo.Sequence()), Data: echo[header.ICMPv4MinimumSize:],
	}}
	if b, err := message.Marshal(nil); err == nil {
		_ = flow.conn.SetReadDeadline(time.Now().Add(pingIdle))
		if _, err := flow.conn.WriteTo(b, flow.at); err == nil {
			e.counts.OutBytes.Add(uint64(len(b)))
		}
	}
}

// pongs hands answers to the machine until none has come for a while.
func (e *Edge) pongs(k pingKey, flow *ping, n *nic, mac []byte) {
	defer e.running.Done()
	defer func() {
		flow.close()
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.pings[k] == flow {
			delete(e.pings, k)
		}
	}()
	buf := make([]byte, 64<<10)
	for {
		size, _, err := flow.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		echo := header.ICMPv4(buf[:size])
		if size < header.ICMPv4MinimumSize || echo.Type() != header.ICMPv4EchoReply || size > n.segment.MTUOr()-header.IPv4MinimumSize {
			continue
		}
		e.counts.InBytes.Add(uint64(size))
		echo.SetIdent(k.id) // the host's socket has its own
		echo.SetChecksum(0)
		echo.SetChecksum(^checksum.Checksum(echo, 0))
		n.packet(mac, k.to, k.from, protocolICMP, echo)
	}
}
