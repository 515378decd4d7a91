package console_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines"
	"github.com/tombolo-vdc/tombolo/handlers/region/machines/console"
)

// What is said in any pieces is read whole by who keeps up, and from the history on by who comes late.
func TestLine(t *testing.T) {
	said := make([]byte, 3*machines.ConsoleHistory+77)
	for i := range said {
		said[i] = byte(i * i / 7)
	}
	for _, piece := range []int{1000, machines.ConsoleHistory - 1, machines.ConsoleHistory, 2*machines.ConsoleHistory + 5} {
		l := console.NewLine([]byte("before"))
		early := l.Join(nil)
		heard := make([]byte, 6)
		if _, err := io.ReadFull(early, heard); err != nil || string(heard) != "before" {
			t.Fatalf("%q, %v", heard, err)
		}
		heard = nil
		for rest := said; len(rest) > 0; {
			n := min(piece, len(rest))
			l.Say(rest[:n])
			part := make([]byte, min(n, machines.ConsoleHistory))
			if _, err := io.ReadFull(early, part); err != nil {
				t.Fatal(err)
			}
			heard = append(heard, part...)
			rest = rest[n:]
		}
		if piece <= machines.ConsoleHistory && !bytes.Equal(heard, said) {
			t.Errorf("pieces of %d: who kept up heard something else", piece)
		}
		if !bytes.Equal(l.History(), said[len(said)-machines.ConsoleHistory:]) {
			t.Errorf("pieces of %d: the history is something else", piece)
		}
		late := l.Join(nil)
		l.Close()
		got, err := io.ReadAll(late)
		if err != nil || !bytes.Equal(got, said[len(said)-machines.ConsoleHistory:]) {
			t.Errorf("pieces of %d: who came late got %d bytes, %v", piece, len(got), err)
		}
	}
}

// Who leaves does not wait any more, and writes nowhere.
func TestLeave(t *testing.T) {
	l := console.NewLine(nil)
	var typed bytes.Buffer
	j := l.Join(&typed)
	if _, err := j.Write([]byte("x")); err != nil || typed.String() != "x" {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { _, err := j.Read(make([]byte, 1)); ended <- err }()
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, io.ErrClosedPipe) {
		t.Fatal(err)
	}
	if _, err := j.Write([]byte("y")); !errors.Is(err, io.ErrClosedPipe) {
		t.Fatal(err)
	}
}
