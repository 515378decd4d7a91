package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/cmd/tombolo/program"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tombolo": func() { os.Exit(run()) }})
}

// TestStories runs the real program as people do. Beside testscript's own
// commands there are:
//
//	up DIR [FLAGS]   starts `tombolo up` on free ports and waits until it can be used
//	down             ends it as ctrl-C does, and demands exit 0
//	exit N ARGS      runs tombolo and demands this exit code
//	http M PATH WANT asks with the administrator's token, demands the status; the answer is in the file http
//	await RE ARGS    runs tombolo at every event until its stdout matches, for a minute at most
//	capture VAR      puts stdout, without the line's end, into an environment variable
//	fill REGEXP      makes large regions known until /readyz?verbose matches, or one is refused if that is the word
//	busy             makes one region after another known, from now on until
//	rest             which demands that a further one was accepted
//	image FILE       builds an ext4 image of this repository's own sources
//	device VAR DIR REGION ENV/NODE/DISK   puts the URL of a disk's block device into an environment variable
func TestStories(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "config"))
			e.Setenv("TOMBOLO_ACCELERATOR", "none")        // testenv's stories run machines
			e.Setenv("LARGE", strings.Repeat("n", 60<<10)) // of what the journal takes at once
			example, err := filepath.Abs("../../docs/how-to/regions.yaml")
			e.Setenv("SETTINGS", example)
			e.Values["story"] = &story{}
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"up": up, "down": down, "exit": exit, "http": ask, "await": await, "capture": capture, "fill": fill, "busy": busy, "rest": rest, "image": image, "device": device,
		},
		RequireExplicitExec: true,
	})
}

// story is what one script has going on.
type story struct {
	server *exec.Cmd
	quiet  chan chan error // asks busy to end
}

func of(ts *testscript.TestScript) *story { return ts.Value("story").(*story) }

func command(ts *testscript.TestScript, args ...string) *exec.Cmd {
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		path := filepath.Join(dir, "tombolo")
		if _, err := os.Stat(path); err != nil {
			continue
		}
		c := exec.Command(path, args...)
		c.Dir = ts.MkAbs(".")
		for _, name := range []string{"PATH", "HOME", "XDG_CONFIG_HOME", "TOMBOLO_CONTEXT", "TOMBOLO_ACCOUNT", "TOMBOLO_ACCELERATOR", "TMPDIR"} {
			if v := ts.Getenv(name); v != "" {
				c.Env = append(c.Env, name+"="+v)
			}
		}
		return c
	}
	ts.Fatalf("tombolo is not in PATH")
	return nil
}

func up(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 || of(ts).server != nil {
		ts.Fatalf("usage: up DIR [FLAGS], once before down")
	}
	dir := ts.MkAbs(args[0])
	c := command(ts, append([]string{"up", "--data", dir, "--http", "127.0.0.1:0", "--nats", "127.0.0.1:0", "--sync", "lazy", "-o", "json"}, args[1:]...)...)
	log, err := os.Create(dir + ".log")
	ts.Check(err)
	c.Stderr = log
	out, err := c.StdoutPipe()
	ts.Check(err)
	ts.Check(c.Start())
	of(ts).server = c
	ts.Defer(func() {
		if of(ts).server == c { // the script ended before its down
			_ = c.Process.Kill()
			_ = c.Wait()
		}
		_ = log.Close()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		text, _ := os.ReadFile(log.Name())
		ts.Fatalf("up said nothing (%v); its log:\n%s", err, text)
	}
	var at program.Addresses
	ts.Check(json.Unmarshal([]byte(line), &at))
	ts.Setenv("TOMBOLO_CONTEXT", at.Context)
	ts.Setenv("HTTP", strings.TrimPrefix(at.HTTP, "http://"))
	ts.Setenv("NATS", strings.TrimPrefix(at.NATS, "nats://"))
}

func down(ts *testscript.TestScript, neg bool, args []string) {
	c := of(ts).server
	if neg || len(args) > 0 || c == nil {
		ts.Fatalf("usage: down, after up")
	}
	ts.Check(c.Process.Signal(os.Interrupt))
	err := c.Wait()
	of(ts).server = nil
	if err != nil {
		ts.Fatalf("up ended with %v", err)
	}
}

func exit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exit N ARGS")
	}
	c := command(ts, args[1:]...)
	var out, talk strings.Builder
	c.Stdout, c.Stderr = &out, &talk
	err := c.Run()
	ts.Check(os.WriteFile(ts.MkAbs("out"), []byte(out.String()), 0o644))
	ts.Check(os.WriteFile(ts.MkAbs("err"), []byte(talk.String()), 0o644))
	if code := c.ProcessState.ExitCode(); fmt.Sprint(code) != args[0] {
		ts.Fatalf("tombolo %s: exit %d (%v), want %s\n%s%s", strings.Join(args[1:], " "), code, err, args[0], out.String(), talk.String())
	}
}

func ask(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: http METHOD PATH STATUS [anonymous | Header: value]")
	}
	r, err := http.NewRequest(args[0], "http://"+ts.Getenv("HTTP")+args[1], nil)
	ts.Check(err)
	admin, err := contexts.Read(ts.Getenv("TOMBOLO_CONTEXT"))
	ts.Check(err)
	r.Header.Set("Authorization", "Bearer "+admin.Token)
	for _, h := range args[3:] {
		if h == "anonymous" {
			r.Header.Del("Authorization")
			continue
		}
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(r)
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	var head strings.Builder
	ts.Check(resp.Header.Write(&head))
	ts.Check(os.WriteFile(ts.MkAbs("http"), append([]byte(head.String()+"\n"), body...), 0o644))
	if fmt.Sprint(resp.StatusCode) != args[2] {
		ts.Fatalf("%s %s: %s, want %s\n%s", args[0], args[1], resp.Status, args[2], body)
	}
}

func await(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: await REGEXP ARGS")
	}
	want, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	follow := command(ts, "events", "--follow", "--from", "1", "--kind", "instance,operation,template,environment,region", "-o", "json")
	happens, err := follow.StdoutPipe()
	ts.Check(err)
	ts.Check(follow.Start())
	late := time.AfterFunc(time.Minute, func() { _ = follow.Process.Kill() })
	defer func() {
		late.Stop()
		_ = follow.Process.Kill()
		_ = follow.Wait()
	}()
	var last []byte
	lines := bufio.NewScanner(happens)
	for lines.Scan() {
		if last, err = command(ts, args[1:]...).Output(); err == nil && want.Match(last) {
			return
		}
	}
	ts.Fatalf("tombolo %s never answered %s; at last:\n%s", strings.Join(args[1:], " "), args[0], last)
}

func fill(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: fill REGEXP")
	}
	want, err := regexp.Compile(args[0])
	ts.Check(err)
	admin, err := contexts.Read(ts.Getenv("TOMBOLO_CONTEXT"))
	ts.Check(err)
	for n := 0; n < 1000; n++ {
		resp, err := http.Get("http://" + ts.Getenv("HTTP") + "/readyz?verbose")
		ts.Check(err)
		said, err := io.ReadAll(resp.Body)
		ts.Check(errors.Join(err, resp.Body.Close()))
		if want.Match(said) {
			return
		}
		status, answer, err := addRegion(ts.Getenv("HTTP"), admin.Token, fmt.Sprintf("fill-%d-%d", time.Now().UnixNano(), n), strings.Repeat("n", 50<<10))
		ts.Check(errors.Join(err, os.WriteFile(ts.MkAbs("http"), answer, 0o644)))
		if status >= 300 && args[0] == "refused" {
			return
		}
		if status >= 300 {
			ts.Fatalf("after %d regions: %s", n, answer)
		}
	}
	ts.Fatalf("the journal never came to %s", args[0])
}

func addRegion(server, token, id, name string) (status int, answer []byte, err error) {
	body := fmt.Sprintf(`{"region":%q,"profile":{"name":%q,"latitude":0,"longitude":0}}`, id, name)
	r, err := http.NewRequest(http.MethodPost, "http://"+server+"/v1/regions", strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return 0, nil, err
	}
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, answer, errors.Join(err, resp.Body.Close())
}

func busy(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: busy, and rest afterwards")
	}
	admin, err := contexts.Read(ts.Getenv("TOMBOLO_CONTEXT"))
	ts.Check(err)
	server, begun, quiet := ts.Getenv("HTTP"), make(chan error, 1), make(chan chan error)
	go func() {
		var ended chan error
		for n := 0; ; n++ {
			status, answer, err := addRegion(server, admin.Token, fmt.Sprintf("busy-%d", n), "Busy")
			if err == nil && status >= 300 {
				err = fmt.Errorf("busy: %d %s", status, answer)
			}
			if n == 0 {
				begun <- err
			}
			if ended != nil || err != nil { // this one was sent after the end was asked for
				if ended == nil {
					ended = <-quiet
				}
				ended <- err
				return
			}
			select {
			case ended = <-quiet:
			default:
			}
		}
	}()
	ts.Check(<-begun)
	of(ts).quiet = quiet
}

func rest(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 || of(ts).quiet == nil {
		ts.Fatalf("usage: rest, after busy")
	}
	ended := make(chan error)
	of(ts).quiet <- ended
	ts.Check(<-ended)
	of(ts).quiet = nil
}

func capture(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: capture VAR")
	}
	ts.Setenv(args[0], strings.TrimSpace(ts.ReadFile("out")))
}
