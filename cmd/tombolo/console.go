package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"

	"github.com/coder/websocket"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/api"
)

// leaveKey ends a console on a terminal: Ctrl-], as with telnet and virsh.
const leaveKey = 0x1d

// machineAt is one machine, and how its region is asked for what is seen of it.
type machineAt struct {
	at   *entrance
	base string // URL, without the last word
	name string // "<environment>-<machine>"
}

// machine finds a machine of an environment; where that has one only, it need
// not be named.
func (c *client) machine(ctx context.Context, env, region, name string) (m machineAt, err error) {
	q := url.Values{}
	set(q, "region", region)
	b, err := c.read(ctx, envPath(env), q)
	if err != nil {
		return m, err
	}
	var e api.OneEnvironment
	if err := json.Unmarshal(b, &e); err != nil {
		return m, err
	}
	var names []string
	if e.Content != nil {
		for _, n := range e.Content.Nodes {
			if n.Type == graph.Machine {
				names = append(names, n.ID)
			}
		}
	}
	switch {
	case name == "" && len(names) == 1:
		name = names[0]
	case name == "":
		return m, usage("environment %s has %s: say which with --vm", env, count(len(names), "machine")).withNext("--vm %s", strings.Join(names, ", "))
	}
	base, _, err := c.reach(ctx, string(e.Region))
	if err != nil {
		return m, err
	}
	return machineAt{at: c.entranceTo(string(e.Region)), name: e.Name + "-" + name,
		base: base + "/v1/environments/" + url.PathEscape(string(e.ID)) + "/machines/" + url.PathEscape(name) + "/"}, nil
}

// machineFlags name one machine.
func machineFlags(c *cobra.Command, vm, region *string) *pflag.FlagSet {
	f := c.Flags()
	f.StringVar(vm, "vm", "", "which machine, where there are several")
	f.StringVar(region, "region", "", "where it is, if several regions have the name")
	return f
}

// join opens a stream of the machine's: its console, or its display.
func (m machineAt) join(ctx context.Context, what string) (net.Conn, error) {
	ticket, err := m.at.current(ctx)
	if err != nil {
		return nil, err
	}
	socket, resp, err := websocket.Dial(ctx, m.base+what, &websocket.DialOptions{HTTPClient: m.at.client.http,
		HTTPHeader: http.Header{"Authorization": {"Bearer " + ticket}}})
	if err != nil {
		if resp != nil && resp.StatusCode >= 400 && resp.Body != nil {
			b, rerr := io.ReadAll(resp.Body)
			if rerr == nil {
				return nil, m.at.refused(ticket, m.at.client.problem(resp, b))
			}
		}
		return nil, m.at.client.unreachable(err)
	}
	return websocket.NetConn(ctx, socket, websocket.MessageBinary), nil
}

func (a *app) envConsole() *cobra.Command {
	var vm, region, vnc string
	c := a.verb("console ENV", "Join a machine's serial line, or open its display to a VNC viewer", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		c, err := a.ready()
		if err != nil {
			return err
		}
		m, err := c.machine(ctx, args[0], region, vm)
		if err != nil {
			return err
		}
		if vnc != "" {
			return a.serveDisplay(ctx, m, vnc)
		}
		line, err := m.join(ctx, "console")
		if err != nil {
			return err
		}
		defer line.Close()
		return a.converse(ctx, line)
	})
	f := machineFlags(c, &vm, &region)
	f.StringVar(&vnc, "vnc", "", "serve the display to VNC viewers here instead: a path for a unix socket, or host:port on loopback")
	c.Long = "Join a machine's serial line: what it said last comes first. On a terminal Ctrl-] leaves.\n" +
		"With --vnc its display is served to VNC viewers on this host, until Ctrl-C."
	return c
}

// converse joins the streams of this process to a machine's serial line.
func (a *app) converse(ctx context.Context, line io.ReadWriter) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, terminal := a.in.(*os.File)
	if terminal = terminal && term.IsTerminal(int(in.Fd())); terminal {
		before, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return err
		}
		defer term.Restore(int(in.Fd()), before)
		a.say("Ctrl-] leaves\r")
	}
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(a.out, line)
		ended <- err
	}()
	go func() {
		if err := typed(line, a.in, terminal); err != nil || terminal {
			ended <- err
		} // a script's input ends, and its output goes on
	}()
	select {
	case err := <-ended:
		if errors.Is(err, io.EOF) || websocket.CloseStatus(err) == websocket.StatusNormalClosure {
			return nil
		}
		return err
	case <-ctx.Done():
		return nil
	}
}

// typed copies what is typed until its end or, on a terminal, the key that leaves.
func typed(to io.Writer, from io.Reader, terminal bool) error {
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		for i := range n {
			if terminal && b[i] == leaveKey {
				return nil
			}
		}
		if n > 0 {
			if _, err := to.Write(b[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// serveDisplay opens the machine's display to viewers on this host, each with a
// connection of its own, until the context ends.
func (a *app) serveDisplay(ctx context.Context, m machineAt, at string) error {
	network := "unix"
	if host, _, err := net.SplitHostPort(at); err == nil && !strings.Contains(at, "/") {
		if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
			return usage("--vnc %s is not on loopback: a display has no password of its own", at).withNext("--vnc 127.0.0.1:5901, or a path")
		}
		network = "tcp"
	}
	l, err := listenPrivately(network, at)
	if err != nil {
		return fail(exitError, "vnc-not-served", "the display cannot be served at %s: %v", at, err)
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	a.say("VNC viewers find the display of %s at %s; Ctrl-C ends it", m.name, l.Addr())
	var viewers sync.WaitGroup
	defer viewers.Wait()
	for {
		near, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		viewers.Go(func() {
			defer near.Close()
			far, err := m.join(ctx, "display")
			if err != nil {
				a.say("a viewer was refused: %v", err)
				return
			}
			defer far.Close()
			go func() {
				_, _ = io.Copy(far, near)
				far.Close()
			}()
			_, _ = io.Copy(near, far)
		})
	}
}

// listenPrivately listens where this user alone may connect.
func listenPrivately(network, at string) (net.Listener, error) {
	l, err := net.Listen(network, at)
	if err != nil || network != "unix" {
		return l, err
	}
	if err := os.Chmod(at, 0o600); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func (a *app) envScreenshot() *cobra.Command {
	var vm, region, file string
	c := a.verb("screenshot ENV", "Write what is on a machine's screen as a PNG", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		c, err := a.ready()
		if err != nil {
			return err
		}
		m, err := c.machine(ctx, args[0], region, vm)
		if err != nil {
			return err
		}
		png, err := m.at.send(ctx, http.MethodGet, m.base+"screenshot", nil, nil)
		if err != nil {
			return err
		}
		if file == "-" {
			_, err := a.out.Write(png)
			return err
		}
		if file == "" {
			file = m.name + ".png"
		}
		if err := os.WriteFile(file, png, 0o600); err != nil {
			return fail(exitError, "file-unwritable", "the screenshot cannot be written: %v", err)
		}
		_, err = fmt.Fprintln(a.out, file)
		return err
	})
	f := machineFlags(c, &vm, &region)
	f.StringVar(&file, "file", "", "where to (default: ENV-MACHINE.png here); - is stdout")
	return c
}
