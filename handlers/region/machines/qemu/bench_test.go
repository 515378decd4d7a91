package qemu_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/machinestest"
)

const (
	benchMemory = 128 << 20
	benchData   = 100 << 20 // of it that is not zero
)

func benchHost(b *testing.B) (*host, machines.Driver) {
	b.Helper()
	h, disks := newHost(b), machinestest.NewDisks()
	d := h.Open(b, disks.Device)
	b.Cleanup(func() { h.end(b) })
	if c, err := d.Capabilities(b.Context()); err != nil || !c.Available {
		b.Fatalf("%+v, %v", c, err)
	}
	return h, d
}

func benchSpec(name string) machines.Spec {
	s := machinestest.Spec(name)
	s.Memory = benchMemory
	return s
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// fullMemory is a guest's memory as if it had used nearly all of it.
func fullMemory(b *testing.B, d machines.Driver) *machines.Memory {
	b.Helper()
	s := benchSpec("seed")
	check(b, d.Start(b.Context(), s, nil))
	check(b, d.Continue(b.Context(), s.Epoch, s.ID))
	machinestest.Join(b, d, s.ID).Await("ready")
	check(b, d.Pause(b.Context(), s.Epoch, s.ID))
	c, err := d.Capture(b.Context(), s.Epoch, s.ID)
	check(b, err)
	all := make([]byte, benchMemory)
	for _, e := range c.Extents {
		if _, err := c.RAM.ReadAt(all[e.Offset:e.Offset+e.Length], e.Offset); err != nil && err != io.EOF {
			b.Fatal(err)
		}
	}
	r := rand.New(rand.NewPCG(1, 2))
	for at := 8 << 20; at < 8<<20+benchData; at += 8 { // where neither guest nor BIOS is
		binary.LittleEndian.PutUint64(all[at:], r.Uint64())
	}
	m := machines.Memory{Hardware: c.Hardware, RAM: bytes.NewReader(all), Devices: c.Devices}
	check(b, c.Close())
	check(b, d.Kill(b.Context(), s.Epoch, s.ID))
	return &m
}

// From nothing to the first byte on the serial line.
func BenchmarkStart(b *testing.B) {
	_, d := benchHost(b)
	s := benchSpec("web")
	for b.Loop() {
		check(b, d.Start(b.Context(), s, nil))
		check(b, d.Continue(b.Context(), s.Epoch, s.ID))
		machinestest.Join(b, d, s.ID).Await("ready")
		b.StopTimer()
		check(b, d.Kill(b.Context(), s.Epoch, s.ID))
		b.StartTimer()
	}
}

// From stored memory to the guest's answer.
func BenchmarkResume(b *testing.B) {
	_, d := benchHost(b)
	m := fullMemory(b, d)
	s := benchSpec("web")
	for b.Loop() {
		check(b, d.Start(b.Context(), s, m))
		check(b, d.Continue(b.Context(), s.Epoch, s.ID))
		machinestest.Join(b, d, s.ID).Ask("c")
		b.StopTimer()
		check(b, d.Kill(b.Context(), s.Epoch, s.ID))
		b.StartTimer()
	}
}

// The silence of three machines of 128 MiB: pause, capture, continue.
func BenchmarkCaptureThree(b *testing.B) {
	_, d := benchHost(b)
	m := fullMemory(b, d)
	var ids []machines.ID
	for i := range 3 {
		s := benchSpec(fmt.Sprintf("m%d", i))
		check(b, d.Start(b.Context(), s, m))
		ids = append(ids, s.ID)
	}
	check(b, d.Continue(b.Context(), 3, ids...))
	var longest time.Duration
	for b.Loop() {
		began := time.Now()
		check(b, d.Pause(b.Context(), 3, ids...))
		var all sync.WaitGroup
		captures := make([]*machines.Capture, len(ids))
		for i, id := range ids {
			all.Go(func() {
				c, err := d.Capture(b.Context(), 3, id)
				if err != nil {
					b.Error(err)
				}
				captures[i] = c
			})
		}
		all.Wait()
		check(b, d.Continue(b.Context(), 3, ids...))
		longest = max(longest, time.Since(began))
		b.StopTimer()
		for _, c := range captures {
			b.ReportMetric(float64(len(c.Devices)), "device-bytes")
			check(b, c.Close())
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(longest.Milliseconds()), "longest-ms")
}

// What an idle machine takes beyond its guest's memory.
func BenchmarkIdle(b *testing.B) {
	h, d := benchHost(b)
	const count = 10
	for i := range count {
		s := benchSpec(fmt.Sprintf("m%d", i))
		check(b, d.Start(b.Context(), s, nil))
		check(b, d.Continue(b.Context(), s.Epoch, s.ID))
		machinestest.Join(b, d, s.ID).Await("ready")
	}
	for b.Loop() {
		var own, mapped float64
		for _, pid := range h.processes(b) {
			rollup := readKiB(b, fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss_Anon:", "Pss_File:")
			own += rollup
			mapped += readKiB(b, fmt.Sprintf("/proc/%d/status", pid), "VmPeak:")
		}
		b.ReportMetric(own/count/1024, "MiB/machine")
		b.ReportMetric(mapped/count/1024, "mapped-MiB/machine")
	}
}

func readKiB(b *testing.B, path string, names ...string) (sum float64) {
	b.Helper()
	text, err := os.ReadFile(path)
	check(b, err)
	for _, name := range names {
		_, rest, _ := strings.Cut(string(text), "\n"+name)
		n, err := strconv.Atoi(strings.Fields(rest)[0])
		check(b, err)
		sum += float64(n)
	}
	return sum
}
