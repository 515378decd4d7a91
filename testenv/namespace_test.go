package testenv

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// namespace is a namespace of this test's own, which goes when the test ends.
type namespace struct {
	script string // runs a program in it
	root   string // its file system, as others see it
}

// newNamespace makes a namespace of a kind ("m" mounts, "n" networks) and sets it
// up by a shell command, as root or as one who is root in it only. What is run by
// its script is the program with the script's arguments.
func newNamespace(t *testing.T, program, kind, setup string) *namespace {
	t.Helper()
	unshare, enter := "-"+kind, "-"+kind
	if os.Geteuid() != 0 {
		unshare, enter = "-Ur"+kind, "-U --preserve-credentials -"+kind
	}
	// It lives as long as its standard input is open: until the test's process has ended, whatever ends it.
	holder := exec.Command("unshare", unshare, "sh", "-c", setup+" && echo there && exec cat")
	end, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(end.Close(), holder.Wait()); err != nil {
			t.Error(err)
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("%s: %q %v", setup, line, err)
	}
	n := &namespace{script: filepath.Join(t.TempDir(), "enter"), root: fmt.Sprintf("/proc/%d/root", holder.Process.Pid)}
	text := fmt.Sprintf("#!/bin/sh\nexec nsenter -t %d %s '%s' \"$@\"\n", holder.Process.Pid, enter, program)
	if err := os.WriteFile(n.script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	return n
}
