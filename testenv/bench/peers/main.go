// Command peers runs a switch of somebody else between machines, as the benchmarks run Tombolo's: it connects to the unix
// socket of each machine and passes frames between them, each after its length in 4 bytes, until it is interrupted. It says
// "{}" when all are connected.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/containers/gvisor-tap-vsock/pkg/tap"
	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context, sockets []string) error {
	gateway, err := tap.NewLinkEndpoint(false, 1500, "5a:94:ef:e4:0c:dd", "192.168.127.1", nil)
	if err != nil {
		return err
	}
	s := tap.NewSwitch(false)
	gateway.Connect(s)
	s.Connect(&silent{gateway})
	for _, path := range sockets {
		conn, err := net.Dial("unix", path)
		if err != nil {
			return err
		}
		go func() {
			if err := s.Accept(ctx, conn, types.QemuProtocol); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "peers:", err)
			}
		}()
	}
	fmt.Println("{}")
	<-ctx.Done()
	return nil
}

// silent is a gateway that takes what is for everybody and answers nothing: only the switch is compared.
type silent struct{ tap.VirtualDevice }

// DeliverNetworkPacket is called with each frame for everybody.
func (silent) DeliverNetworkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}
