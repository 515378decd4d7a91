// Package machinestest holds what tests of drivers share: the conformance suite (Run), its guest, and disks in memory.
package machinestest

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// Guest is a conversation with the suite's guest, on the serial line. The guest says "ready" when it has started, counts the
// time (18.2 a second) and has a mark. A key asks something of it, and the answer is a line of the key, a count in 8
// hexadecimal digits and a mark:
//
//	c   what the count and the mark are
//	m?  sets the mark to the next key
//	w   writes count and mark to the disk, into the second sector; r reads them; e instead is an error of the disk
//	a   the power button shuts down from now on
//	s   shuts down
//	p   panics
//	f   FloodLines lines with counts from 0, 112 KiB
type Guest struct {
	t     testing.TB
	conn  io.ReadWriteCloser
	lines chan string
}

// FloodLines is how many lines the key f gives.
const FloodLines = 0x2000

// patience is how long a guest may be silent.
const patience = 30 * time.Second

// Join joins a machine's console; the test's end leaves it.
func Join(t testing.TB, d machines.Reader, id machines.ID) *Guest {
	t.Helper()
	conn, err := d.Console(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	g := &Guest{t: t, conn: conn, lines: make(chan string, 3*FloodLines)}
	t.Cleanup(func() { conn.Close() })
	go func() {
		defer close(g.lines)
		for in := bufio.NewScanner(conn); in.Scan(); {
			g.lines <- in.Text()
		}
	}()
	return g
}

// Type presses keys.
func (g *Guest) Type(keys string) {
	g.t.Helper()
	if _, err := io.WriteString(g.conn, keys); err != nil {
		g.t.Fatal(err)
	}
}

// Await gives the next line that begins so.
func (g *Guest) Await(begin string) string {
	g.t.Helper()
	timeout := time.After(patience)
	var heard []string
	for {
		select {
		case line, ok := <-g.lines:
			if strings.HasPrefix(line, begin) {
				return line
			}
			if heard = append(heard, line); !ok {
				g.t.Fatalf("the console ended; no %q in %q", begin, heard)
			}
		case <-timeout:
			g.t.Fatalf("no %q in %q", begin, heard)
		}
	}
}

// Heard says how many lines nobody awaited yet.
func (g *Guest) Heard() int { return len(g.lines) }

// Answer is what a line says.
type Answer struct {
	Count uint32
	Mark  byte
}

// Ask presses keys and gives the answer to the first.
func (g *Guest) Ask(keys string) Answer {
	g.t.Helper()
	g.Type(keys)
	return g.Answer(keys[:1])
}

// Answer gives the next answer to a key.
func (g *Guest) Answer(key string) Answer {
	g.t.Helper()
	line := g.Await(key + " ")
	var a Answer
	if n, err := fmt.Sscanf(line[2:], "%08x %c", &a.Count, &a.Mark); n != 2 {
		g.t.Fatalf("the line %q: %v", line, err)
	}
	return a
}
