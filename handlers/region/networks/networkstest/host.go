package networkstest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// host is the IP stack of a guest.
type host struct {
	stack *stack.Stack
	link  *channel.Endpoint
	addr  netip.Addr
	end   context.CancelFunc
	ended sync.WaitGroup
}

const hostNIC = 1

func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: hostNIC, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}
}

// boot gives the machine an IP stack with an address, and a gateway if there is one.
func (m *Machine) boot(address netip.Prefix, gateway netip.Addr, mtu int) *Machine {
	m.t.Helper()
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	sack := tcpip.TCPSACKEnabled(true)
	_ = s.SetTransportProtocolOption(tcp.ProtocolNumber, &sack)
	h := &host{stack: s, addr: address.Addr(), link: channel.New(1024, uint32(mtu+header.EthernetMinimumSize), tcpip.LinkAddress(m.mac))}
	check := func(err tcpip.Error) {
		m.t.Helper()
		if err != nil {
			m.t.Fatal(err)
		}
	}
	check(s.CreateNIC(hostNIC, ethernet.New(h.link)))
	own := tcpip.AddressWithPrefix{Address: tcpip.AddrFrom4(address.Addr().As4()), PrefixLen: address.Bits()}
	check(s.AddProtocolAddress(hostNIC, tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: own}, stack.AddressProperties{}))
	s.AddRoute(tcpip.Route{Destination: own.Subnet(), NIC: hostNIC})
	if gateway.IsValid() {
		s.AddRoute(tcpip.Route{Destination: header.IPv4EmptySubnet, Gateway: tcpip.AddrFrom4(gateway.As4()), NIC: hostNIC})
	}
	ctx, cancel := context.WithCancel(context.Background())
	h.end = cancel
	h.ended.Go(func() {
		for {
			pkt := h.link.ReadContext(ctx)
			if pkt == nil {
				return
			}
			v := pkt.ToView()
			m.mu.Lock()
			w := m.wire
			m.mu.Unlock()
			_ = w.send(v.AsSlice()) // lost when nobody is plugged in, as from any machine
			v.Release()
			pkt.DecRef()
		}
	})
	m.mu.Lock()
	old := m.host
	m.host = h
	m.mu.Unlock()
	if old != nil {
		old.close()
	}
	return m
}

func (h *host) input(f []byte) {
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(f)})
	defer pkt.DecRef()
	h.link.InjectInbound(0, pkt) // ethernet.Endpoint reads the type
}

func (h *host) close() {
	h.end()
	h.ended.Wait()
	h.stack.Destroy()
}

// dialTCP connects to an address from the machine.
func (m *Machine) dialTCP(ctx context.Context, to netip.AddrPort) (*gonet.TCPConn, error) {
	return gonet.DialContextTCP(ctx, m.host.stack, fullAddress(to), ipv4.ProtocolNumber)
}

// mustDialTCP connects, or fails the test.
func (m *Machine) mustDialTCP(to netip.AddrPort) *gonet.TCPConn {
	m.t.Helper()
	c, err := m.dialTCP(within(m.t), to)
	if err != nil {
		m.t.Fatalf("%s to %s: %v", m.id.Machine, to, err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c
}

// listenTCP listens on the machine.
func (m *Machine) listenTCP(port uint16) *gonet.TCPListener {
	m.t.Helper()
	l, err := gonet.ListenTCP(m.host.stack, fullAddress(netip.AddrPortFrom(m.host.addr, port)), ipv4.ProtocolNumber)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { l.Close() })
	return l
}

// dialUDP makes a socket that sends to one address.
func (m *Machine) dialUDP(to netip.AddrPort) *gonet.UDPConn {
	m.t.Helper()
	remote := fullAddress(to)
	c, err := gonet.DialUDP(m.host.stack, nil, &remote, ipv4.ProtocolNumber)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c
}

// listenUDP makes a socket that everybody may send to.
func (m *Machine) listenUDP(port uint16) *gonet.UDPConn {
	m.t.Helper()
	local := fullAddress(netip.AddrPortFrom(m.host.addr, port))
	c, err := gonet.DialUDP(m.host.stack, &local, nil, ipv4.ProtocolNumber)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	return c
}

// echo sends an ICMP echo and waits for its answer until the context ends.
func (m *Machine) echo(ctx context.Context, to netip.Addr, size int) error {
	var queue waiter.Queue
	ep, failed := m.host.stack.NewEndpoint(icmp.ProtocolNumber4, ipv4.ProtocolNumber, &queue)
	if failed != nil {
		return errors.New(failed.String())
	}
	defer ep.Close()
	entry, notify := waiter.NewChannelEntry(waiter.ReadableEvents)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	ask := header.ICMPv4(make([]byte, header.ICMPv4MinimumSize+size))
	ask.SetType(header.ICMPv4Echo)
	for i := range size {
		ask[header.ICMPv4MinimumSize+i] = byte(i)
	}
	dst := fullAddress(netip.AddrPortFrom(to, 0))
	if _, failed := ep.Write(bytes.NewReader(ask), tcpip.WriteOptions{To: &dst}); failed != nil {
		return errors.New(failed.String())
	}
	for {
		select {
		case <-notify:
		case <-ctx.Done():
			return ctx.Err()
		}
		var got bytes.Buffer
		result, failed := ep.Read(&got, tcpip.ReadOptions{NeedRemoteAddr: true})
		if failed != nil {
			continue
		}
		if from := netip.AddrFrom4(result.RemoteAddr.Addr.As4()); from != to {
			return fmt.Errorf("%s answered in the place of %s", from, to)
		}
		answer := header.ICMPv4(got.Bytes())
		if answer.Type() != header.ICMPv4EchoReply || !bytes.Equal(answer[header.ICMPv4MinimumSize:], ask[header.ICMPv4MinimumSize:]) {
			return fmt.Errorf("not the answer to the echo: %x", []byte(answer))
		}
		return nil
	}
}

// client gives who is at the other end of a connection that a machine accepted.
func client(t testing.TB, c net.Conn) netip.Addr {
	t.Helper()
	return c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
}

// abort breaks a connection off.
func (m *Machine) abort(c *gonet.TCPConn) {
	local, remote := c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort()
	for _, ep := range m.host.stack.RegisteredEndpoints() {
		if e, ok := ep.(tcpip.Endpoint); ok {
			l, _ := e.GetLocalAddress()
			r, _ := e.GetRemoteAddress()
			if l.Port == local.Port() && r.Port == remote.Port() {
				e.Abort()
			}
		}
	}
}

func tcpipAddr(s string) tcpip.Address { return tcpip.AddrFrom4(netip.MustParseAddr(s).As4()) }
