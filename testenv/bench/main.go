// Command bench measures Tombolo against its limits and its peers, on the real program and real disks, and writes the
// tables of docs/benchmarks.md. It exits with 1 where a goal is missed, and lists those.
//
//	go run ./testenv/bench                    everything
//	go run ./testenv/bench -only copy,clone   some rows; their tables alone are written
//	go run ./testenv/bench -docs ""           without writing the document
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/tombolo-vdc/tombolo/testenv/process"
	"github.com/tombolo-vdc/tombolo/testenv/report"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 3 && args[0] == partFiles:
		err = serveFiles(ctx, args[1], args[2])
	case len(args) == 2 && strings.HasPrefix(args[0], "@"):
		err = runPart(ctx, args[0], args[1])
	default:
		err = measure(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run.
type bench struct {
	self, binary string // this program, and the one that is measured
	dir          string // scratch
	repeats      int
	imageBytes   int64 // of files in the image
	events       int
	rounds       int
	roundTime    time.Duration
	saves        int

	chunker             *chunker
	peerNote, imageNote string
	peaks               []int64
	load                string // before the part that is measured
	goals               *report.Goals
	tables              []*report.Table
}

type rows struct {
	name string
	run  func(*bench, context.Context) error
}

// everything in the order of the document.
func everything() []rows {
	return []rows{{"commands", (*bench).commandRows}, {"reads", (*bench).readRows}, {"copy", (*bench).copyRows},
		{"clone", (*bench).cloneRows}, {"restart", (*bench).restartRows},
		{"resume", (*bench).resumeRows}, {"freeze", (*bench).freezeRows}, {"segment", (*bench).segmentRows}, {"idle", (*bench).idleRows}}
}

func measure(ctx context.Context) (err error) {
	var names []string
	for _, r := range everything() {
		names = append(names, r.name)
	}
	b := &bench{load: loadAverage()}
	only := flag.String("only", strings.Join(names, ","), "which rows")
	docs := flag.String("docs", "docs/benchmarks.md", "the document whose tables are written; empty: none")
	scratch := flag.String("scratch", "", "a folder on the disk that is measured (default: the system's for temporary files)")
	megabytes := flag.Int64("image", 1200, "MiB of files in the image that is copied")
	flag.IntVar(&b.repeats, "repeats", 3, "how often each copy is made")
	flag.IntVar(&b.rounds, "rounds", 5, "how often what is compared alternates")
	flag.DurationVar(&b.roundTime, "round", 2*time.Second, "how long a round of commands or frames lasts")
	flag.IntVar(&b.saves, "saves", 50, "how often the row freeze saves each disk")
	flag.IntVar(&b.events, "events", 1_000_000, "how many events are in the journal of the rows reads and restart")
	flag.Parse()
	b.imageBytes = *megabytes << 20
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(*scratch, "tombolo-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if b.binary, err = process.Build(ctx, b.dir); err != nil {
		return err
	}
	b.chunker, b.peerNote = findChunker()
	began := time.Now()
	var missed []string
	for _, r := range everything() {
		if !slices.Contains(strings.Split(*only, ","), r.name) {
			continue
		}
		b.say("== %s", r.name)
		b.goals, b.tables = report.NewGoals("goals-"+r.name), nil
		if err := r.run(b, ctx); err != nil {
			if ctx.Err() != nil {
				return err
			}
			b.goals.NotMeasured(r.name, err)
		}
		missed = append(missed, b.goals.Missed()...)
		if err := b.conclude(*docs); err != nil {
			return err
		}
	}
	b.say("measured in %s", time.Since(began).Round(time.Second))
	if len(missed) > 0 {
		return fmt.Errorf("%d goals are missed:\n  %s", len(missed), strings.Join(missed, "\n  "))
	}
	return nil
}

// conclude prints and writes what was measured of one part, so that the next one's failure takes nothing away.
func (b *bench) conclude(docs string) error {
	b.goals.Note("Measured on %s with %d processors, %s %s/%s, kernel %s; `%s`. The machine's load before and after: %s, %s.", time.Now().UTC().Format("2006-01-02"), runtime.NumCPU(),
		runtime.Version(), runtime.GOOS, runtime.GOARCH, kernel(), command(), b.load, loadAverage())
	b.load = loadAverage()
	for _, t := range append(b.tables, &b.goals.Table) {
		t.Print(os.Stdout)
		if docs == "" {
			continue
		}
		if err := t.Write(docs); err != nil {
			return err
		}
	}
	return nil
}

// loadAverage is how many processes wanted to run in the last minute: what else the machine had to do decides what the
// figures are worth.
func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(text), " ")
	return first
}

func kernel() string {
	var u syscall.Utsname
	if err := syscall.Uname(&u); err != nil {
		return "unknown"
	}
	var b []byte
	for _, c := range u.Release {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}

func command() string {
	return strings.TrimSpace("go run ./testenv/" + filepath.Base(os.Args[0]) + " " + strings.Join(os.Args[1:], " "))
}

// say tells on stderr what goes on.
func (b *bench) say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
