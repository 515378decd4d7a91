package main

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
)

// TestDemoMachines runs the whole demo and looks for what a person is to see. It is run whole because each of its acts
// needs the one before, and because it compares for itself what it tells: boot ids, counters, what is left.
func TestDemoMachines(t *testing.T) {
	temporary, err := os.MkdirTemp("", "demo") // not the test's own, whose name is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(temporary); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("TMPDIR", temporary)
	var out bytes.Buffer
	if err := perform(t.Context(), &out, options{accelerator: "tcg"}); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, line := range []string{
		"$ tombolo up --data data --regions beijing,sydney --accelerator tcg &",
		"$ tombolo env create -f shop.yaml --region beijing --wait",
		"$ curl 'http://127.0.113.80:8080/peer?url=http://db/'",
		"$ tombolo env save shop --new Shop --memory --regions beijing,sydney --wait",
		"The three machines stood still together for ",
		"$ tombolo template instantiate shop --region sydney --name shop-in-sydney --wait",
		"$ curl http://127.51.100.80:8080/",
		"The same boot ",
		"written-in-Beijing",
		"$ tombolo env suspend shop --wait",
		"$ tombolo env resume shop --wait",
		"db runs Linux ",
		"web.png: a picture of ",
		"tcp/8081:80",
		"is closed again.",
		"$ kill -KILL ",
		"It runs again ",
		"no process of it is left.",
		"Nothing is left",
	} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("%q is missing in\n%s", line, out.String())
		}
	}
	if files, err := os.ReadDir(temporary); err != nil || len(files) > 0 {
		t.Errorf("files are left: %v, %v", files, err)
	}
}

func TestMissingToolsAreNamed(t *testing.T) {
	err := missing(func(program string) (string, error) {
		if program == "curl" || program == "qemu-system-x86_64" {
			return "", errors.New("not here")
		}
		return "/usr/bin/" + program, nil
	})
	if err == nil || !strings.Contains(err.Error(), "apt-get install --no-install-recommends qemu-system-x86 curl") || strings.Contains(err.Error(), "mkfs") {
		t.Errorf("%v", err)
	}
	if err := missing(func(program string) (string, error) { return program, nil }); err != nil {
		t.Error(err)
	}
}
