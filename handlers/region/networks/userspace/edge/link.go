package edge

import (
	"encoding/binary"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// What waits on its way out of the stack; when it is reached, packets are lost as on any link.
const outgoing = 1 << 20

var outgoingBuffers = sync.Pool{New: func() any { b := make([]byte, 0, outgoing); return &b }}

// link carries packets between a stack and a segment. It writes many of them at once: a goroutine does while there are any.
type link struct {
	send func(frames []byte)
	addr tcpip.LinkAddress

	mu       sync.Mutex
	mtu      uint32
	upper    stack.NetworkDispatcher
	queue    *[]byte
	flushing bool
	closed   bool
}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)

// inject hands what a frame carries to the stack, which gets a copy.
func (l *link) inject(protocol tcpip.NetworkProtocolNumber, payload []byte) {
	l.mu.Lock()
	upper := l.upper
	l.mu.Unlock()
	if upper == nil {
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(payload)})
	defer pkt.DecRef()
	upper.DeliverNetworkPacket(protocol, pkt)
}

// WritePackets takes packets with their Ethernet headers.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, &tcpip.ErrClosedForSend{}
	}
	for i, pkt := range pkts.AsSlice() {
		n := pkt.Size()
		if !l.room(n) {
			return i, &tcpip.ErrNoBufferSpace{}
		}
		*l.queue = binary.BigEndian.AppendUint32(*l.queue, uint32(n))
		for _, b := range pkt.AsSlices() {
			*l.queue = append(*l.queue, b...)
		}
	}
	l.flush()
	return pkts.Len(), nil
}

// frame sends one that was made without the stack.
func (l *link) frame(f []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || !l.room(len(f)) {
		return
	}
	*l.queue = binary.BigEndian.AppendUint32(*l.queue, uint32(len(f)))
	*l.queue = append(*l.queue, f...)
	l.flush()
}

func (l *link) room(n int) bool {
	if l.queue == nil {
		l.queue = outgoingBuffers.Get().(*[]byte)
	}
	return len(*l.queue)+4+n <= outgoing
}

func (l *link) flush() {
	if l.flushing || l.queue == nil {
		return
	}
	l.flushing = true
	go func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		for l.queue != nil {
			batch := l.queue
			l.queue = nil
			l.mu.Unlock()
			l.send(*batch)
			*batch = (*batch)[:0]
			outgoingBuffers.Put(batch)
			l.mu.Lock()
		}
		l.flushing = false
	}()
}

// Close drops what comes from now on.
func (l *link) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}

func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.upper = d
}

func (l *link) IsAttached() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.upper != nil
}

func (l *link) MTU() uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mtu
}

func (l *link) SetMTU(mtu uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mtu = mtu
}

func (l *link) MaxHeaderLength() uint16                 { return header.EthernetMinimumSize }
func (l *link) LinkAddress() tcpip.LinkAddress          { return l.addr }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (l *link) Wait()                                   {}
func (l *link) SetOnCloseAction(func())                 {}
func (l *link) GSOMaxSize() uint32                      { return stack.GVisorGSOMaxSize }
func (l *link) SupportedGSO() stack.SupportedGSO        { return stack.GVisorGSOSupported }

func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired
}

func (l *link) AddHeader(pkt *stack.PacketBuffer) {
	header.Ethernet(pkt.LinkHeader().Push(header.EthernetMinimumSize)).Encode(&header.EthernetFields{
		SrcAddr: pkt.EgressRoute.LocalLinkAddress,
		DstAddr: pkt.EgressRoute.RemoteLinkAddress,
		Type:    pkt.NetworkProtocolNumber,
	})
}

func (l *link) ParseHeader(*stack.PacketBuffer) bool { return true }
