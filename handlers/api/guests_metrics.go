package api

import (
	"context"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// guestMetrics are the figures of a region's machines, ports and edges, asked of
// its drivers when somebody reads them.
type guestMetrics struct {
	host Host

	memory, used                                    *prometheus.Desc // of machines
	frames, bytes, dropped, parked, plugged         *prometheus.Desc // of ports
	connections, opened, refused, exhausted, passed *prometheus.Desc // of edges
}

// askPatience bounds how long drivers may take to answer a scraper.
const askPatience = 5 * time.Second

func newGuestMetrics(h Host) guestMetrics {
	of := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("tombolo_"+name, help, append([]string{"environment"}, labels...), nil)
	}
	port := []string{"machine", "interface", "direction"}
	return guestMetrics{host: h,
		memory:      of("machine_memory_bytes", "Memory that the guest was promised.", "machine", "state"),
		used:        of("machine_used_bytes", "Memory that the machine's process takes on its host.", "machine", "state"),
		frames:      of("port_frames_total", "Frames that a machine's interface sent (in) and was sent (out).", port...),
		bytes:       of("port_bytes_total", "Bytes of those frames.", port...),
		dropped:     of("port_dropped_frames_total", "Frames that were not passed on: malformed or not its own (in), its queue full (out).", port...),
		parked:      of("port_parked_frames", "Frames that wait for a machine that is on its way.", port[:2]...),
		plugged:     of("port_plugged", "1 while the machine is connected.", port[:2]...),
		connections: of("edge_connections", "Connections through the environment's edge."),
		opened:      of("edge_connections_opened_total", "Connections that the edge let through."),
		refused:     of("edge_connections_refused_total", "Connections that a rule refused, or none allowed."),
		exhausted:   of("edge_ports_exhausted_total", "Connections refused because all source ports were in use."),
		passed:      of("edge_bytes_total", "Bytes from the outside (in) and to it (out).", "direction"),
	}
}

// Describe see prometheus.Collector.
func (m guestMetrics) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.memory, m.used, m.frames, m.bytes, m.dropped, m.parked, m.plugged, m.connections, m.opened, m.refused, m.exhausted, m.passed} {
		to <- d
	}
}

// Collect see prometheus.Collector.
func (m guestMetrics) Collect(to chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), askPatience)
	defer cancel()
	now, err := m.host.HostLoad(ctx)
	if err != nil {
		to <- prometheus.NewInvalidMetric(m.memory, err)
		return
	}
	tell := func(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, kind, value, labels...)
	}
	for _, s := range now.Running {
		tell(m.memory, prometheus.GaugeValue, float64(s.Memory), s.ID.Environment, s.ID.Machine, string(s.State))
		tell(m.used, prometheus.GaugeValue, float64(s.Used), s.ID.Environment, s.ID.Machine, string(s.State))
	}
	for _, p := range now.Ports {
		at := []string{p.Environment, p.Machine, strconv.Itoa(p.Interface)}
		for _, way := range []struct {
			name                   string
			frames, bytes, dropped uint64
		}{{"in", p.InFrames, p.InBytes, p.InDropped}, {"out", p.OutFrames, p.OutBytes, p.OutDropped}} {
			labels := append(at[:3:3], way.name)
			tell(m.frames, prometheus.CounterValue, float64(way.frames), labels...)
			tell(m.bytes, prometheus.CounterValue, float64(way.bytes), labels...)
			tell(m.dropped, prometheus.CounterValue, float64(way.dropped), labels...)
		}
		plugged := 0.0
		if p.Plugged {
			plugged = 1
		}
		tell(m.parked, prometheus.GaugeValue, float64(p.Parked), at...)
		tell(m.plugged, prometheus.GaugeValue, plugged, at...)
	}
	for _, e := range now.Edges {
		tell(m.connections, prometheus.GaugeValue, float64(e.Connections), e.Environment)
		tell(m.opened, prometheus.CounterValue, float64(e.Opened), e.Environment)
		tell(m.refused, prometheus.CounterValue, float64(e.Refused), e.Environment)
		tell(m.exhausted, prometheus.CounterValue, float64(e.PortsExhausted), e.Environment)
		tell(m.passed, prometheus.CounterValue, float64(e.InBytes), e.Environment, "in")
		tell(m.passed, prometheus.CounterValue, float64(e.OutBytes), e.Environment, "out")
	}
}
