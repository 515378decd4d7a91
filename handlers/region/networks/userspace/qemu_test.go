package userspace_test

import (
	"bytes"
	"context"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/networks"
	"github.com/tombolo-vdc/tombolo/handlers/region/networks/userspace"
)

// TestQEMU: a real machine's firmware finds its way: it has no disk, and so asks for an address and then for what to boot.
func TestQEMU(t *testing.T) {
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		t.Fatal("QEMU is not installed: make test installs it (Debian: qemu-system-x86)")
	}
	dir, err := os.MkdirTemp("", "net")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	s, err := userspace.New(userspace.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	n := idleNetwork(1)
	n.Segments[0].Ports[0].Address = netip.Addr{} // so that its lease is one that is made
	if err := s.Apply(t.Context(), n); err != nil {
		t.Fatal(err)
	}
	id := networks.PortID{Environment: n.Environment, Machine: n.Segments[0].Ports[0].Machine}
	at, err := s.Attachment(t.Context(), 0, id)
	if err != nil {
		t.Fatal(err)
	}
	// The firmware speaks on the serial line when it finds the line's port, 0x3f8, in this file.
	console := filepath.Join(dir, "console")
	if err := os.WriteFile(console, []byte{0xf8, 0x03}, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "pc,accel=tcg", "-m", "64M", "-nodefaults", "-display", "none",
		"-serial", "stdio", "-fw_cfg", "name=etc/sercon-port,file="+console,
		"-netdev", "stream,id=net,server=on,addr.type=unix,addr.path="+at.Socket,
		"-device", "e1000,netdev=net,bootindex=1,mac="+n.Segments[0].Ports[0].MAC)
	said, err := qemu.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = qemu.Wait()
	}()
	if err := s.Plug(ctx, 0, id); err != nil {
		t.Fatal(err)
	}
	const want = "net0: 10.0.0.2/255.255.255.0 gw 10.0.0.1"
	var all []byte
	for buf := make([]byte, 4096); !bytes.Contains(all, []byte(want)); {
		n, err := said.Read(buf)
		if all = append(all, buf[:n]...); err != nil {
			t.Fatalf("it ended (%v) without saying %q:\n%s", err, want, all)
		}
	}
}
