package qmp_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/handlers/region/machines/qmp"
)

// emulator starts a real one that runs nothing, with a monitor on the other end of the connection.
func emulator(t *testing.T, each func(qmp.Event)) *qmp.Client {
	t.Helper()
	here, there := pair(t)
	f, err := there.File()
	if err != nil {
		t.Fatal(err)
	}
	there.Close()
	cmd := exec.Command("qemu-system-x86_64", "-machine", "none,accel=tcg", "-nodefaults", "-display", "none", "-S",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("the tests need QEMU (Debian: qemu-system-x86): %v", err)
	}
	f.Close()
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	c, err := qmp.Connect(t.Context(), here, each)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// pair gives the two ends of a connection.
func pair(t *testing.T) (here, there *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return ends[0], ends[1]
}

type runState struct {
	Status  string `json:"status"`
	Running bool   `json:"running"`
}

func TestCommandsAndEvents(t *testing.T) {
	events := make(chan qmp.Event, 100)
	c := emulator(t, func(e qmp.Event) { events <- e })
	if v := c.Version(); strings.Count(v, ".") != 2 || v == "0.0.0" {
		t.Errorf("version %q", v)
	}
	var state runState
	if err := c.Do(t.Context(), "query-status", nil, &state); err != nil || state.Status != "prelaunch" {
		t.Fatalf("%+v, %v", state, err)
	}
	for command, event := range map[string]string{"cont": "RESUME", "stop": "STOP"} {
		if err := c.Do(t.Context(), "cont", nil, nil); err != nil {
			t.Fatal(err)
		}
		if err := c.Do(t.Context(), command, nil, nil); err != nil {
			t.Fatal(err)
		}
		for e := range events {
			if e.Time.IsZero() {
				t.Errorf("%+v", e)
			}
			if e.Name == event {
				break
			}
		}
	}
	// Many at once, each with its own reply.
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			var out []struct {
				Name string `json:"name"`
			}
			name := fmt.Sprintf("/objects/o%d", i)
			err := c.Do(t.Context(), "object-add", map[string]any{"qom-type": "memory-backend-ram", "id": name[9:], "size": 4096}, nil)
			if err == nil {
				err = c.Do(t.Context(), "qom-list", map[string]string{"path": name}, &out)
			}
			if err != nil || len(out) == 0 {
				t.Errorf("%v, %d", err, len(out))
			}
		})
	}
	all.Wait()
	var refusal qmp.Refusal
	err := c.Do(t.Context(), "no-such-command", nil, nil)
	if qmp.CodeOf(err) != qmp.Refused || !errors.As(err, &refusal) || refusal.Class != "CommandNotFound" {
		t.Errorf("%v", err)
	}
	if err := c.Do(t.Context(), "query-status", nil, new(int)); qmp.CodeOf(err) != qmp.Garbled {
		t.Errorf("%v", err)
	}
	if err := c.Do(t.Context(), "query-status", nil, &state); err != nil { // and goes on
		t.Error(err)
	}
}

// A file reaches the emulator: it has the only end of a pipe that can be written to, and when it closes that, the reader
// sees the end.
func TestFiles(t *testing.T) {
	c := emulator(t, nil)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	name := map[string]string{"fdname": "pipe"}
	if err := c.Do(t.Context(), "getfd", name, nil, w); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.Do(t.Context(), "closefd", name, nil); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(r); err != nil || len(b) != 0 {
		t.Errorf("%q, %v", b, err)
	}
}

func TestQuit(t *testing.T) {
	c := emulator(t, nil)
	if err := c.Do(t.Context(), "quit", nil, nil); err != nil && qmp.CodeOf(err) != qmp.Closed {
		t.Fatal(err)
	}
	<-c.Done()
	if err := c.Do(t.Context(), "query-status", nil, nil); qmp.CodeOf(err) != qmp.Closed {
		t.Error(err)
	}
}

// fake is an emulator that answers as a test says.
func fake(t *testing.T, say func(in *bufio.Scanner, out io.Writer)) *net.UnixConn {
	t.Helper()
	here, there := pair(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer there.Close()
		say(bufio.NewScanner(there), there)
	}()
	t.Cleanup(func() { here.Close(); <-done })
	return here
}

const greeting = `{"QMP": {"version": {"qemu": {"micro": 1, "minor": 2, "major": 9}, "package": ""}, "capabilities": ["oob"]}}` + "\r\n"

// greet does what every emulator does first.
func greet(in *bufio.Scanner, out io.Writer) {
	io.WriteString(out, greeting)
	reply(in, out, `{}`)
}

// reply answers the next command.
func reply(in *bufio.Scanner, out io.Writer, value string) {
	var m struct {
		ID uint64 `json:"id"`
	}
	if in.Scan() && json.Unmarshal(in.Bytes(), &m) == nil {
		fmt.Fprintf(out, `{"return": %s, "id": %d}`+"\r\n", value, m.ID)
	}
}

func TestBadGreetings(t *testing.T) {
	for name, c := range map[string]struct {
		say  string
		want qmp.Code
	}{
		"nothing":  {"", qmp.Closed},
		"half":     {greeting[:40], qmp.Garbled},
		"garbage":  {"HTTP/1.1 400 Bad Request\r\n", qmp.Garbled},
		"no hello": {`{"return": {}}` + "\n", qmp.Garbled},
		"huge":     {strings.Repeat("x", 5<<20), qmp.Garbled},
		"and gone": {greeting, qmp.Closed},
	} {
		t.Run(name, func(t *testing.T) {
			conn := fake(t, func(_ *bufio.Scanner, out io.Writer) { io.WriteString(out, c.say) })
			if _, err := qmp.Connect(t.Context(), conn, nil); qmp.CodeOf(err) != c.want {
				t.Errorf("%v", err)
			}
		})
	}
	t.Run("silence", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		conn := fake(t, func(in *bufio.Scanner, _ io.Writer) { cancel(); in.Scan() })
		if _, err := qmp.Connect(ctx, conn, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

func TestBadReplies(t *testing.T) {
	for name, c := range map[string]struct {
		say  string
		want qmp.Code
	}{
		"closed":     {"", qmp.Closed},
		"half":       {`{"return": {"status": "pa`, qmp.Garbled},
		"garbage":    {"\x00\xff\xfe\n", qmp.Garbled},
		"a number":   {"17\n", qmp.Garbled},
		"without id": {`{"error": {"class": "GenericError", "desc": "JSON parse error"}}` + "\n", qmp.Garbled},
		"huge":       {`{"return": "` + strings.Repeat("x", 5<<20) + `", "id": 2}` + "\n", qmp.Garbled},
	} {
		t.Run(name, func(t *testing.T) {
			conn := fake(t, func(in *bufio.Scanner, out io.Writer) {
				greet(in, out)
				in.Scan()
				io.WriteString(out, c.say)
			})
			client, err := qmp.Connect(t.Context(), conn, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			var all sync.WaitGroup
			for range 3 { // one is answered so, and the others wait behind it
				all.Go(func() {
					if err := client.Do(t.Context(), "query-status", nil, nil); qmp.CodeOf(err) != c.want {
						t.Errorf("%v", err)
					}
				})
			}
			all.Wait()
			<-client.Done()
		})
	}
}

// A reply that comes when nobody waits any more is not taken for another command's; replies may come in any order.
func TestLateReply(t *testing.T) {
	released := make(chan struct{})
	var events []string
	conn := fake(t, func(in *bufio.Scanner, out io.Writer) {
		greet(in, out)
		in.Scan() // the first is not answered in time
		<-released
		io.WriteString(out, `{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}`+"\n"+`{"return": "first", "id": 2}`+"\n")
		reply(in, out, `"second"`)
	})
	c, err := qmp.Connect(t.Context(), conn, func(e qmp.Event) { events = append(events, e.Name) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	context.AfterFunc(ctx, func() { close(released) })
	go cancel()
	var s string
	if err := c.Do(ctx, "first", nil, &s); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v, %q", err, s)
	}
	if err := c.Do(t.Context(), "second", nil, &s); err != nil || s != "second" {
		t.Errorf("%v, %q", err, s)
	}
	if len(events) != 1 || events[0] != "STOP" {
		t.Errorf("%q", events)
	}
}

// Who closes does not wait for an emulator that hangs.
func TestClose(t *testing.T) {
	conn := fake(t, func(in *bufio.Scanner, out io.Writer) {
		greet(in, out)
		for in.Scan() {
		}
	})
	c, err := qmp.Connect(t.Context(), conn, nil)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- c.Do(t.Context(), "hang", nil, nil) }()
	c.Close()
	if err := <-ended; qmp.CodeOf(err) != qmp.Closed {
		t.Error(err)
	}
}
