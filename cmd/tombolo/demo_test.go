package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestDemo runs the README's first command, in this process, and looks for what
// a person is to see.
func TestDemo(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var out, errs bytes.Buffer
	code := execute(t.Context(), []string{"demo", "--number", "48151623"}, streams{strings.NewReader(""), &out, &errs}, os.Getenv)
	if code != exitOK {
		t.Fatalf("exit %d\n%s\n%s", code, out.String(), errs.String())
	}
	for _, line := range []string{
		"template create --from-env ajax-demo --name 'Ajax Sales Demo' --number 48151623",
		"loc:sydney/48151623@1",
		"203.0.113.0            192.0.2.0", // each region's own address for the web machine
		"loc:chicago/48151623@2",
		"equal positions agreed",
		"The content's digest is the same in all regions.",
		"0 bytes between regions",
		"a block was read, written and read back",
		"(copy-needed)",
		"ajax-in-chicago",
		"Nothing is left behind",
	} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("%q is missing in\n%s", line, out.String())
		}
	}
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "tombolo-demo-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
