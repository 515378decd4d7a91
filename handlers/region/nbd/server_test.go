package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// memory is a device of bytes.
type memory struct {
	mu      sync.RWMutex
	bytes   []byte
	flushes int
	full    bool
}

func (m *memory) Size() int64 { return int64(len(m.bytes)) }

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return bytes.NewReader(m.bytes).ReadAt(p, off)
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.full {
		return 0, fmt.Errorf("write: %w", syscall.ENOSPC)
	}
	return copy(m.bytes[off:], p), nil
}

func (m *memory) Trim(off, n int64) error { return m.WriteZeroes(off, n, false) }

func (m *memory) WriteZeroes(off, n int64, _ bool) error {
	_, err := m.WriteAt(make([]byte, n), off)
	return err
}

func (m *memory) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushes++
	return nil
}

// look gives a copy of the bytes and the number of flushes.
func (m *memory) look() ([]byte, int) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Clone(m.bytes), m.flushes
}

// Extent maps blocks of 64 KiB.
func (m *memory) Extent(off, n int64) (bool, int64, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	n = min(n, 64<<10-off%(64<<10))
	return !slices.ContainsFunc(m.bytes[off:off+n], func(b byte) bool { return b != 0 }), n, nil
}

func noise(n int) []byte {
	b := make([]byte, n)
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	for i := range b {
		if i/(256<<10)%2 == 0 {
			b[i] = byte(rnd.Uint32())
		}
	}
	return b
}

// start serves a device as "disk" and gives the socket.
func start(t *testing.T, exports ...Export) (s *Server, socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	s = NewServer()
	for _, e := range exports {
		if err := s.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), <-done); err != nil {
			t.Error(err)
		}
	})
	return s, socket
}

func dial(t *testing.T, socket, name string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), socket, name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wantCode(t *testing.T, err error, want Code) {
	t.Helper()
	if CodeOf(err) != want {
		t.Fatalf("%v, want %s", err, want)
	}
}

func TestClientAndServer(t *testing.T) {
	d := &memory{bytes: noise(70<<20 + 17)}
	want := slices.Clone(d.bytes)
	_, socket := start(t, Export{Name: "disk", Device: d}, Export{Name: "fixed", Device: d, ReadOnly: true})
	names, err := List(t.Context(), socket)
	if err != nil || !slices.Equal(names, []string{"disk", "fixed"}) {
		t.Fatal(names, err)
	}
	c := dial(t, socket, "disk")
	got := make([]byte, len(want))
	if n, err := c.ReadAt(got, 0); err != nil || n != len(want) || c.Size() != int64(n) {
		t.Fatal(n, err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("other bytes")
	}
	if n, err := c.ReadAt(make([]byte, 30), int64(len(want))-17); n != 17 || !errors.Is(err, io.EOF) {
		t.Fatal(n, err)
	}
	var work sync.WaitGroup
	for i := range 8 {
		work.Go(func() {
			rnd := rand.New(rand.NewPCG(2, uint64(i)))
			for range 200 {
				off := int64(i)<<20 + rnd.Int64N(1<<19)
				p := make([]byte, rnd.IntN(200<<10))
				for k := range p {
					p[k] = byte(rnd.Uint32())
				}
				back := make([]byte, len(p))
				_, werr := c.WriteAt(p, off)
				_, rerr := c.ReadAt(back, off)
				if werr != nil || rerr != nil || !bytes.Equal(p, back) {
					t.Error(werr, rerr)
				}
			}
		})
	}
	work.Wait()
	if err := errors.Join(c.Trim(0, 4096), c.WriteZeroes(4096, c.Size()-4096, true), c.Flush()); err != nil {
		t.Fatal(err)
	}
	if b, flushes := d.look(); flushes != 1 || slices.ContainsFunc(b, func(b byte) bool { return b != 0 }) {
		t.Fatal(flushes, "flushes, or something is left")
	}
	_, err = c.WriteAt([]byte{1}, c.Size())
	wantCode(t, err, RangeInvalid)
	d.mu.Lock()
	d.full = true
	d.mu.Unlock()
	if _, err := c.WriteAt([]byte{1}, 0); !errors.Is(err, ENOSPC) {
		t.Fatal(err)
	}
	f := dial(t, socket, "fixed")
	if _, err := f.WriteAt([]byte{1}, 0); !errors.Is(err, EPERM) || !f.ReadOnly() {
		t.Fatal(err)
	}
	_, err = Dial(t.Context(), socket, "no such")
	wantCode(t, err, ExportUnknown)
	if err := errors.Join(c.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	wantCode(t, c.Flush(), Disconnected)
}

// slow is a device whose writes wait.
type slow struct {
	*memory
	begun, goOn chan struct{}
}

func (s slow) WriteAt(p []byte, off int64) (int, error) {
	close(s.begun)
	<-s.goOn
	return s.memory.WriteAt(p, off)
}

func TestRemoveWaitsForRequests(t *testing.T) {
	d := slow{&memory{bytes: make([]byte, 8192)}, make(chan struct{}), make(chan struct{})}
	s, socket := start(t, Export{Name: "disk", Device: d})
	c := dial(t, socket, "disk")
	wrote := make(chan error, 1)
	go func() {
		_, err := c.WriteAt([]byte{7}, 0)
		wrote <- err
	}()
	<-d.begun
	removed := make(chan bool, 1)
	go func() { removed <- s.Remove("disk") }()
	wantCode(t, <-wrote, Disconnected)
	select {
	case <-removed:
		t.Fatal("a request is still on its way")
	default:
	}
	close(d.goOn)
	removedIt := <-removed
	if b, _ := d.look(); !removedIt || s.Remove("disk") || b[0] != 7 {
		t.Fatal("not removed as told")
	}
	wantCode(t, s.Add(Export{Name: "", Device: d}), ExportInvalid)
	if err := s.Add(Export{Name: "disk", Device: d}); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.Add(Export{Name: "disk", Device: d}), ExportExists)
}

func TestSockets(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "s")
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Listen(path)
	wantCode(t, err, SocketInUse)
	l.(*listener).SetUnlinkOnClose(false) // as after a kill
	l.Close()
	if l, err = Listen(path); err != nil {
		t.Fatal("a socket that a dead process left: ", err)
	}
	l.Close()
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Listen(path)
	wantCode(t, err, SocketUnusable)
	_, err = Listen(filepath.Join(dir, strings.Repeat("x", 108)))
	wantCode(t, err, SocketPathLong)
	_, err = Dial(t.Context(), path, "x")
	wantCode(t, err, Disconnected)

	long := filepath.Join(dir, strings.Repeat("long/", 30))
	a, err := SocketPath(long, "nbd")
	b, berr := SocketPath(long, "nbd")
	if err != nil || berr != nil || a != b || len(a) > maxSocketPath {
		t.Fatal(a, b, err, berr)
	}
	if short, err := SocketPath(dir, "nbd"); err != nil || short != filepath.Join(dir, "nbd") {
		t.Fatal(short, err)
	}
}

// TestHostileBytes sends what no client would: nothing must panic, hang, or harm the device or other clients.
func TestHostileBytes(t *testing.T) {
	d := &memory{bytes: make([]byte, 1<<20)}
	_, socket := start(t, Export{Name: "disk", Device: d})
	good := dial(t, socket, "disk")
	raw := func() net.Conn {
		c, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 18)); err != nil {
			t.Fatal(err)
		}
		return c
	}
	option := func(option, length uint32, data string) []byte {
		b := binary.BigEndian.AppendUint64(nil, magicOption)
		b = binary.BigEndian.AppendUint32(b, option)
		return append(binary.BigEndian.AppendUint32(b, length), data...)
	}
	flags := []byte{0, 0, 0, 3}
	for name, b := range map[string][]byte{
		"unknown client flags": {0xff, 0, 0, 0},
		"no option":            append(slices.Clone(flags), bytes.Repeat([]byte("x"), 64)...),
		"huge option":          append(slices.Clone(flags), option(optGo, 1<<31, "")...),
		"old unknown name":     append(slices.Clone(flags), option(optExportName, 4, "nope")...),
		"goodbye":              append(slices.Clone(flags), option(optAbort, 0, "")...),
	} {
		c := raw()
		if _, err := c.Write(b); err != nil {
			t.Fatal(name, err)
		}
		if _, err := io.Copy(io.Discard, c); err != nil && !errors.Is(err, syscall.ECONNRESET) { // until the server ends it
			t.Fatal(name, err)
		}
	}
	// Options that are answered with an error leave the negotiation as it was.
	c := raw()
	c.Write(flags)
	for _, o := range []struct {
		option, length uint32
		data           string
		want           uint32
	}{
		{99, 3, "abc", repErrUnsup},
		{optGo, 2, "\x00\x00", repErrInvalid},
		{optGo, 8, "\xff\xff\xff\xffdisk", repErrInvalid},
		{optGo, 10, "\x00\x00\x00\x04disk\x00\x09", repErrInvalid},
		{optInfo, 10, "\x00\x00\x00\x04disc\x00\x00", repErrUnknown},
		{optList, 1, "x", repErrInvalid},
		{optSetMetaContext, 12, "\x00\x00\x00\x04disk\x00\x00\x00\x00", repErrInvalid}, // needs structured replies first
		{optGo, maxOption + 1, strings.Repeat("x", maxOption+1), repErrTooBig},
	} {
		if _, err := c.Write(option(o.option, o.length, o.data)); err != nil {
			t.Fatal(err)
		}
		var r [20]byte
		if _, err := io.ReadFull(c, r[:]); err != nil || binary.BigEndian.Uint32(r[12:]) != o.want {
			t.Fatalf("option %d: %#x, want %#x: %v", o.option, binary.BigEndian.Uint32(r[12:]), o.want, err)
		}
	}
	c.Close()

	request := func(flags, command uint16, off uint64, n uint32) Errno {
		t.Helper()
		b := binary.BigEndian.AppendUint32(nil, magicRequest)
		b = binary.BigEndian.AppendUint16(b, flags)
		b = binary.BigEndian.AppendUint16(b, command)
		b = binary.BigEndian.AppendUint64(b, 1<<40)
		b = binary.BigEndian.AppendUint64(b, off)
		reply := make(chan error, 1)
		good.mu.Lock()
		good.pending[1<<40] = pending{reply: reply}
		good.mu.Unlock()
		if _, err := good.conn.Write(binary.BigEndian.AppendUint32(b, n)); err != nil {
			t.Fatal(err)
		}
		var e Errno
		errors.As(<-reply, &e)
		return e
	}
	for _, r := range []struct {
		flags, command uint16
		off            uint64
		n              uint32
		want           Errno
	}{
		{0, 77, 0, 0, EINVAL},
		{0, cmdRead, 1 << 63, 1, EINVAL},
		{0, cmdRead, 1<<20 - 1, 2, EINVAL},
		{0, cmdRead, 0, 1 << 31, EINVAL},
		{0x8000, cmdRead, 0, 1, EINVAL},
		{0, cmdTrim, 1 << 20, 1, ENOSPC},
		{flagFastZero | flagNoHole, cmdWriteZeroes, 0, 1, ENOTSUP},
		{0, cmdFlush, 1, 0, EINVAL},
		{0, cmdBlockStatus, 0, 4096, EINVAL}, // not negotiated
	} {
		if got := request(r.flags, r.command, r.off, r.n); got != r.want {
			t.Errorf("%+v: %v", r, got)
		}
	}
	// Random bytes behind a good start.
	rnd := rand.New(rand.NewPCG(9, 9))
	for range 200 {
		c := raw()
		b := slices.Clone(flags)
		if rnd.IntN(2) == 0 {
			b = append(b, option(optGo, 10, "\x00\x00\x00\x04disk\x00\x00")...)
			b = binary.BigEndian.AppendUint32(b, magicRequest)
		}
		for range rnd.IntN(100) {
			b = append(b, byte(rnd.Uint32()))
		}
		c.Write(b)
		c.(*net.UnixConn).CloseWrite()
		io.Copy(io.Discard, c)
		c.Close()
	}
	if err := good.Flush(); err != nil {
		t.Fatal("a client that did nothing wrong: ", err)
	}
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestOtherPrograms lets programs that others wrote use the server.
func TestOtherPrograms(t *testing.T) {
	d := &memory{bytes: noise(40 << 20)}
	_, socket := start(t, Export{Name: "env/disk", Description: "a disk", Device: d})
	uri := "nbd+unix:///env/disk?socket=" + socket
	info := tool(t, "nbdinfo", uri)
	for _, want := range []string{"protocol: newstyle-fixed without TLS, using structured packets", "export-size: 41943040", "base:allocation", "a disk",
		"can_multi_conn: true", "can_flush: true", "can_fua: true", "can_trim: true", "can_zero: true", "can_fast_zero: true", "can_df: true",
		"block_size_minimum: 1", "block_size_maximum: 33554432"} {
		if !strings.Contains(info, want) {
			t.Errorf("nbdinfo does not say %q:\n%s", want, info)
		}
	}
	if list := tool(t, "nbdinfo", "--list", "nbd+unix://?socket="+socket); !strings.Contains(list, "export=\"env/disk\"") {
		t.Error(list)
	}
	if extents := tool(t, "nbdinfo", "--map", uri); strings.Count(extents, "hole,zero") != 80 {
		t.Errorf("%d holes:\n%s", strings.Count(extents, "hole,zero"), extents)
	}
	out := filepath.Join(t.TempDir(), "out")
	tool(t, "nbdcopy", uri, out)
	before, flushes := d.look()
	if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, before) {
		t.Fatal("nbdcopy reads something else", err)
	}
	tool(t, "qemu-io", "-f", "raw", "-c", "write -P 0xab 1234k 100k", "-c", "write -f -P 0xcd 10M 512", "-c", "write -z 20M 1M", "-c", "discard 30M 1M",
		"-c", "flush", "-c", "read -P 0xab 1234k 100k", uri)
	if b, n := d.look(); b[1234<<10] != 0xab || b[10<<20+511] != 0xcd || b[20<<20+5] != 0 || b[30<<20] != 0 || n < flushes+2 {
		t.Error("qemu-io's writes are not there")
	}
	in := noise(40<<20 + 1)[:40<<20]
	if err := os.WriteFile(out, in, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "nbdcopy", "--flush", out, uri)
	if b, _ := d.look(); !bytes.Equal(b, in) {
		t.Error("nbdcopy wrote something else")
	}
	if cmp := tool(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", out, uri); !strings.Contains(cmp, "identical") {
		t.Error(cmp)
	}
}

func TestContextEndsServing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	path := filepath.Join(t.TempDir(), "s")
	s := NewServer()
	done := make(chan error, 1)
	ready := make(chan struct{})
	go func() { done <- s.ListenAndServe(ctx, path, func() { close(ready) }) }()
	<-ready
	if names, err := List(t.Context(), path); err != nil || len(names) != 0 {
		t.Fatal(names, err)
	}
	cancel()
	if err := errors.Join(<-done, s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatal("the socket is left: ", err)
	}
}
