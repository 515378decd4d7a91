// Package console is a machine's serial line as people join it: the driver hears the machine, and everyone who joined reads
// the same, at the own pace, after what was said last.
package console

import (
	"io"
	"sync"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
)

// Line keeps the last machines.ConsoleHistory bytes that a machine said. Readers have a position and no queue, so a slow one
// costs nothing and holds up nobody: it misses what is older than the history. It is safe for concurrent use.
type Line struct {
	mu     sync.Mutex
	more   sync.Cond // broadcast on every change
	ring   []byte
	said   int64 // bytes since the line was made; the last are in the ring
	closed bool
}

// NewLine makes a line on which a machine has said the history before.
func NewLine(history []byte) *Line {
	l := &Line{ring: make([]byte, machines.ConsoleHistory)}
	l.more.L = &l.mu
	l.Say(history)
	return l
}

// Say is what the machine said.
func (l *Line) Say(p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if skip := len(p) - len(l.ring); skip > 0 {
		p, l.said = p[skip:], l.said+int64(skip)
	}
	n := copy(l.ring[l.said%int64(len(l.ring)):], p)
	copy(l.ring, p[n:])
	l.said += int64(len(p))
	l.more.Broadcast()
}

// Close says that the machine will say no more: who joined reads the rest and then io.EOF.
func (l *Line) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.more.Broadcast()
}

// History gives what the machine said last.
func (l *Line) History() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	size := int64(len(l.ring))
	out := make([]byte, 0, min(l.said, size))
	for at := max(0, l.said-size); at < l.said; {
		from := at % size
		piece := l.ring[from:min(size, from+l.said-at)]
		out, at = append(out, piece...), at+int64(len(piece))
	}
	return out
}

// Join reads from the oldest byte that is there; what is written goes to input.
func (l *Line) Join(input io.Writer) io.ReadWriteCloser {
	return &joined{line: l, input: input}
}

type joined struct {
	line   *Line
	input  io.Writer
	at     int64 // guarded by line.mu, as is closed
	closed bool
}

// Read waits until there is something to read.
func (j *joined) Read(p []byte) (int, error) {
	l := j.line
	l.mu.Lock()
	defer l.mu.Unlock()
	for j.at == l.said && !l.closed && !j.closed {
		l.more.Wait()
	}
	switch {
	case j.closed:
		return 0, io.ErrClosedPipe
	case j.at == l.said:
		return 0, io.EOF
	}
	size := int64(len(l.ring))
	j.at = max(j.at, l.said-size)
	from := j.at % size
	n := copy(p, l.ring[from:min(size, from+l.said-j.at)])
	j.at += int64(n)
	return n, nil
}

// Write is what a person types.
func (j *joined) Write(p []byte) (int, error) {
	j.line.mu.Lock()
	closed := j.closed
	j.line.mu.Unlock()
	if closed {
		return 0, io.ErrClosedPipe
	}
	return j.input.Write(p)
}

// Close ends a Read that waits.
func (j *joined) Close() error {
	j.line.mu.Lock()
	defer j.line.mu.Unlock()
	j.closed = true
	j.line.more.Broadcast()
	return nil
}
