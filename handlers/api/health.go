package api

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/tombolo-vdc/tombolo/events/journal"
)

// health registers the probes and the metrics.
func (s *Server) health() {
	s.mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	s.mux.HandleFunc("GET /readyz", s.readyz)
	s.mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}))
}

// readyz answers 200 when everything that an answer needs is well; with verbose
// it says what is and what is not.
func (s *Server) readyz(w http.ResponseWriter, r *http.Request) {
	checks := s.checks(r)
	status := http.StatusOK
	for _, c := range checks {
		if c.Err != nil {
			status = http.StatusServiceUnavailable
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	if _, verbose := r.URL.Query()["verbose"]; !verbose {
		if status == http.StatusOK {
			fmt.Fprintln(w, "ok")
		} else {
			fmt.Fprintln(w, "not ready; /readyz?verbose says why")
		}
		return
	}
	for _, c := range checks {
		switch {
		case c.Err != nil:
			fmt.Fprintf(w, "[-] %s: %v\n", c.Name, c.Err)
		case c.Warning != "":
			fmt.Fprintf(w, "[!] %s: %s\n", c.Name, c.Warning)
		default:
			fmt.Fprintf(w, "[+] %s ok\n", c.Name)
		}
	}
}

func (s *Server) checks(r *http.Request) []Check {
	status := s.Feed.Status()
	reads := Check{Name: fmt.Sprintf("reads (position %d)", status.Position), Err: status.Stopped}
	if !status.Running && status.Stopped == nil {
		reads.Err = fmt.Errorf("the projections are not running")
	}
	tip, err := s.Journal.Tip(r.Context())
	out := []Check{reads, {Name: fmt.Sprintf("journal (tip %d)", tip), Err: err}}
	if used, limit, err := s.Journal.Usage(r.Context()); err == nil && limit > 0 {
		out = append(out, Check{Name: fmt.Sprintf("journal's room (%d of %d bytes)", used, limit), Warning: Fullness(journal.LevelOf(used, limit))})
	}
	if s.Ready != nil {
		out = append(out, s.Ready()...)
	}
	return out
}

// Fullness says in words what a journal's level asks for; nothing where it asks for nothing.
func Fullness(l journal.Level) string {
	switch l {
	case journal.Filling:
		return "eight tenths are used: raise the limit soon (tombolo server grow)"
	case journal.NearlyFull:
		return "nine tenths are used: only what finishes, undoes or releases something is accepted (tombolo server grow)"
	}
	return ""
}

// metrics are this handler's own: no global registry.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(s *Server) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tombolo_http_requests_total", Help: "HTTP requests by method and status."}, []string{"method", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "tombolo_http_request_seconds", Help: "How long HTTP requests took.",
			Buckets: []float64{.001, .005, .025, .1, .5, 2.5, 10}}, []string{"method"}),
	}
	m.registry.MustRegister(m.requests, m.seconds, &journalCollector{s,
		prometheus.NewDesc("tombolo_journal_bytes", "Bytes that the journal takes.", nil, nil),
		prometheus.NewDesc("tombolo_journal_limit_bytes", "Bytes that the journal may take; 0 is without limit.", nil, nil),
		prometheus.NewDesc("tombolo_journal_level", "How full the journal is: 1 from eight tenths of its limit on, 2 from nine tenths on, where only what finishes is accepted.", nil, nil),
		prometheus.NewDesc("tombolo_journal_sequence", "Sequence of the journal's last event.", nil, nil),
		prometheus.NewDesc("tombolo_reads_position", "Sequence of the last event that reads show.", nil, nil),
		prometheus.NewDesc("tombolo_reads_lag", "Events that the journal has beyond the reads.", nil, nil),
		prometheus.NewDesc("tombolo_reads_stopped", "1 if the projections stopped at an event.", nil, nil),
	})
	if s.Host != nil {
		m.registry.MustRegister(hostMetrics(s.Host)...)
	}
	return m
}

func (m *metrics) request(r *http.Request, status int, took time.Duration) {
	m.requests.WithLabelValues(r.Method, strconv.Itoa(status)).Inc()
	m.seconds.WithLabelValues(r.Method).Observe(took.Seconds())
}

// journalCollector asks when it is scraped.
type journalCollector struct {
	server                                                  *Server
	bytes, limit, level, sequence, position, lag, isStopped *prometheus.Desc
}

// Describe names what Collect gives.
func (c *journalCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.bytes, c.limit, c.level, c.sequence, c.position, c.lag, c.isStopped} {
		out <- d
	}
}

// Collect reads the journal and the feed.
func (c *journalCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64) { out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v) }
	ctx, cancel := contextFor(tipPatience)
	defer cancel()
	status := c.server.Feed.Status()
	gauge(c.position, float64(status.Position))
	stopped := 0.0
	if status.Stopped != nil {
		stopped = 1
	}
	gauge(c.isStopped, stopped)
	if used, limit, err := c.server.Journal.Usage(ctx); err == nil {
		gauge(c.bytes, float64(used))
		gauge(c.limit, float64(limit))
		gauge(c.level, float64(journal.LevelOf(used, limit)))
	}
	if tip, err := c.server.Journal.Tip(ctx); err == nil {
		gauge(c.sequence, float64(tip))
		gauge(c.lag, float64(max(tip, status.Position)-status.Position))
	}
}
