package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/testenv/guest"
	"github.com/tombolo-vdc/tombolo/testenv/process"
)

// demo is one performance: the program that runs, and where its story has got to.
type demo struct {
	out         io.Writer
	accelerator string
	dir, binary string
	server      *process.Server

	beijing, sydney string       // where the web machine is reached
	before          guest.Answer // what it said last in Beijing
}

// end ends the program as ctrl-C does, which suspends what runs.
func (d *demo) end() error {
	if d.server == nil {
		return nil
	}
	s := d.server
	d.server = nil
	_, err := s.Down()
	return err
}

func (d *demo) note(format string, args ...any) {
	fmt.Fprintf(d.out, "   %s\n", fmt.Sprintf(format, args...))
}

// file writes a file of the demo's and shows it.
func (d *demo) file(name, text string) error {
	fmt.Fprintf(d.out, "$ cat %s\n%s\n", name, indented(text))
	return os.WriteFile(filepath.Join(d.dir, name), []byte(text), 0o644)
}

func indented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("  " + strings.TrimRight(line, "\r\n ") + "\n")
	}
	return b.String()
}

// show runs a command line of tombolo, prints it, and what it answers.
func (d *demo) show(ctx context.Context, args ...string) error {
	fmt.Fprintf(d.out, "$ tombolo %s\n", quoted(args))
	began := time.Now()
	out, err := d.tombolo(ctx, args...)
	if err != nil {
		return err
	}
	fmt.Fprint(d.out, indented(string(out)))
	if took := time.Since(began); took > time.Second {
		fmt.Fprintf(d.out, "  (%.1f s)\n", took.Seconds())
	}
	fmt.Fprintln(d.out)
	return nil
}

// ask runs a command line whose answer is looked at rather than read.
func (d *demo) ask(ctx context.Context, into any, args ...string) error {
	out, err := d.tombolo(ctx, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	return json.Unmarshal(out, into)
}

// command is a command line of tombolo against the demo's program.
func (d *demo) command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, d.binary, append([]string{"-q", "--no-input"}, args...)...)
	c.Dir = d.dir
	c.Env = append(os.Environ(), "XDG_CONFIG_HOME="+filepath.Join(d.dir, "config"), "TOMBOLO_CONTEXT="+d.server.Addresses.Context)
	return c
}

func (d *demo) tombolo(ctx context.Context, args ...string) ([]byte, error) {
	c := d.command(ctx, args...)
	var out, talk bytes.Buffer
	c.Stdout, c.Stderr = &out, &talk
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("tombolo %s: %w\n%s%s", quoted(args), err, out.Bytes(), talk.Bytes())
	}
	return out.Bytes(), nil
}

func quoted(args []string) string {
	out := slices.Clone(args)
	for i, a := range out {
		if a == "" || strings.ContainsAny(a, " '\"&?;$") {
			out[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}

// patience is how long a machine may take to boot and answer.
const patience = 90 * time.Second

// until asks, a few times a second, until there is no error.
func until(ctx context.Context, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// curl asks for a URL until it is answered, and shows the command and the answer.
func (d *demo) curl(ctx context.Context, url string) (body string, err error) {
	args := []string{"-fsS", "--noproxy", "*", "--max-time", "3", url}
	fmt.Fprintf(d.out, "$ curl %s\n", quoted([]string{url}))
	began := time.Now()
	err = until(ctx, func() error {
		var out, talk bytes.Buffer
		c := exec.CommandContext(ctx, "curl", args...)
		c.Stdout, c.Stderr = &out, &talk
		if err := c.Run(); err != nil {
			return fmt.Errorf("curl %s: %w: %s", url, err, talk.Bytes())
		}
		body = out.String()
		return nil
	})
	if err != nil {
		return "", err
	}
	fmt.Fprint(d.out, indented(body))
	if took := time.Since(began); took > time.Second {
		fmt.Fprintf(d.out, "  (asked again until it answered: %.1f s)\n", took.Seconds())
	}
	fmt.Fprintln(d.out)
	return body, nil
}

// answer is curl of what a guest says of itself.
func (d *demo) answer(ctx context.Context, url string) (a guest.Answer, err error) {
	body, err := d.curl(ctx, url)
	if err == nil {
		err = json.Unmarshal([]byte(body), &a)
	}
	return a, err
}

// wentOn checks that a guest has not booted between two answers.
func wentOn(before, after guest.Answer) error {
	if after.BootID != before.BootID || after.Uptime < before.Uptime || after.Counter.Value < before.Counter.Value ||
		after.Counter.PID != before.Counter.PID || !after.Counter.Open {
		return fmt.Errorf("the machine was %+v and is %+v: it has not gone on", before, after)
	}
	return nil
}

// typed joins a machine's serial line, types a line, and shows it with the first line of the answer that begins so.
func (d *demo) typed(ctx context.Context, env, machine, line, begins string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c := d.command(ctx, "env", "console", env, "--vm", machine)
	fmt.Fprintf(d.out, "$ tombolo env console %s --vm %s\n", env, machine)
	in, err := c.StdinPipe()
	if err != nil {
		return err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	defer func() {
		cancel() // a console goes on until somebody leaves it
		_ = c.Wait()
	}()
	if _, err := io.WriteString(in, "\n"+line+"\n"); err != nil {
		return err
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if text := strings.TrimSpace(lines.Text()); strings.HasPrefix(text, begins) {
			fmt.Fprintf(d.out, "  # %s\n  %s\n\n", line, text)
			return nil
		}
	}
	return fmt.Errorf("the console of %s gave no line that begins with %q", machine, begins)
}
