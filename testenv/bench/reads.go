package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/tombolo-vdc/tombolo/testenv/report"
)

// readRows has the benchmarks of the read models measure: they know the rows and their keys. Fewer events than a
// million are measured by their short form, a tenth of that.
func (b *bench) readRows(ctx context.Context) error {
	args := []string{"test", "-p", "1", "github.com/tombolo-vdc/tombolo/cmd/tombolo/program", "github.com/tombolo-vdc/tombolo/projections",
		"-run", "^$", "-bench", "^(BenchmarkRebuild|BenchmarkWhere)$", "-benchtime", "1x", "-timeout", "30m"}
	events := "1,000,000"
	if b.events < 1_000_000 {
		args = append(args, "-short")
		events = "a tenth, or less, of 1,000,000"
	}
	out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	figures, err := benchmarkFigures(out)
	if err != nil {
		return err
	}
	t := &report.Table{Name: "reads", Head: []string{"what", "Tombolo", "compared with", "ratio"}}
	if rebuild := figures["BenchmarkRebuild"]; rebuild != nil {
		t.Add("rebuild of all read models, events/s", rebuild["rebuild/s"], "nats.go alone, consuming and decoding the JSON: "+report.Number(rebuild["nats.go/s"]), rebuild["of-nats.go"])
		t.Add("processor time for an event, µs", rebuild["rebuild-cpu-us"], "nats.go alone: "+report.Number(rebuild["nats.go-cpu-us"]), rebuild["nats.go-cpu-us"]/rebuild["rebuild-cpu-us"])
		t.Add("peak of Go's heap while rebuilding, MiB", rebuild["peak-heap-MiB"], "", "")
		b.goals.AtLeast("projection rebuild / nats.go alone", 0.5, rebuild["of-nats.go"], "")
	} else {
		b.goals.NotMeasured("projection rebuild", errors.New("BenchmarkRebuild said nothing"))
	}
	if where := figures["BenchmarkWhere"]; where != nil {
		for _, p := range []string{"p50", "p99"} {
			t.Add("`where`, "+p+" in µs", where["where-"+p+"-us"], "raw Pebble scan of as many rows: "+report.Number(where["raw-"+p+"-us"]), where["where-of-raw-"+p])
		}
		t.Add("`where` as of the middle of 100 versions per row, p99 in µs", where["as-of-p99-us"], "`where` now: "+report.Number(where["where-p99-us"]), where["as-of-of-where-p99"])
		b.goals.AtMost("where p99 / raw Pebble scan p99", 3, where["where-of-raw-p99"], "")
		b.goals.AtMost("where as of, p99 / where p99", 3, where["as-of-of-where-p99"], "")
	} else {
		b.goals.NotMeasured("where", errors.New("BenchmarkWhere said nothing"))
	}
	t.Note("Of %s events of an installation at work, written through the journal to a real stream (rebuild), and of as many instances (`where`, asked in turn with its peer, 20,000 times each, from the opening of a view to its end); as `go test ./cmd/tombolo/program ./projections -run '^$' -bench 'Rebuild|Where' -benchtime 1x` measures. When the rebuild ends its tables are not merged yet: Pebble does that beside the reads.", events)
	b.tables = append(b.tables, t)
	return nil
}

// benchmarkFigures reads the lines of Go's benchmark format: name, runs, and pairs of figure and unit.
func benchmarkFigures(out []byte) (map[string]map[string]float64, error) {
	all := map[string]map[string]float64{}
	lines := bufio.NewScanner(bytes.NewReader(out))
	name := ""
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		if strings.HasPrefix(fields[0], "Benchmark") {
			name, _, _ = strings.Cut(fields[0], "-")
			fields = fields[1:]
		}
		// A benchmark that logs has its figures on a line of their own.
		if name == "" || len(fields) < 3 {
			continue
		}
		if _, err := strconv.Atoi(fields[0]); err != nil {
			continue
		}
		all[name] = map[string]float64{}
		for i := 1; i+1 < len(fields); i += 2 {
			x, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%s says %q", name, lines.Text())
			}
			all[name][fields[i+1]] = x
		}
	}
	return all, lines.Err()
}
