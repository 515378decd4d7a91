package ovf

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	govmomi "github.com/vmware/govmomi/ovf"

	"github.com/tombolo-vdc/tombolo/events/graph"
)

var update = flag.Bool("update", false, "write the golden files again")

const corpusGolden = "testdata/corpus.txt"

// corpus lists the descriptors that the module of govmomi ships, as it is in the module cache.
func corpus(t testing.TB) (dir string, files []string) {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/vmware/govmomi").Output()
	if err != nil {
		t.Fatalf("where is govmomi? %v", err)
	}
	dir = strings.TrimSpace(string(out))
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if ext := filepath.Ext(path); err == nil && (ext == ".ovf" || ext == ".ova") {
			rel, rerr := filepath.Rel(dir, path)
			files, err = append(files, filepath.ToSlash(rel)), rerr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	return dir, files
}

// markedNegative says whether a file's own name or folder marks it as one that must not be taken: govmomi's rule.
func markedNegative(name string) bool {
	for _, mark := range []string{"neg-", "negative-", "negative_", "ovf_negative", "/Neg/", "corrupted"} {
		if strings.Contains(name, mark) {
			return true
		}
	}
	return strings.Contains(strings.ToLower(name), "invalid")
}

// refusable says whether a descriptor that is not marked negative may be refused all the same: it is no OVF, or it forbids
// itself to those who do not know one of its sections (DSP0243 6).
func refusable(name string, code Code) bool {
	switch code {
	case CodeXML, CodeNotEnvelope, CodeSectionRequired:
		return true
	}
	return name == "ovf/fixtures/empty.ovf" // an envelope with nothing in it
}

// Every descriptor that others wrote gives a graph, or is refused with a reason. The disks are not in the module; the
// one archive has the beginning of its disk.
func TestCorpus(t *testing.T) {
	dir, files := corpus(t)
	if len(files) != 962 {
		t.Errorf("%d descriptors, there were 962", len(files))
	}
	var got bytes.Buffer
	taken := 0
	for _, name := range files {
		p, err := Open(context.Background(), filepath.Join(dir, filepath.FromSlash(name)), Options{Diskless: true})
		var refused *Error
		switch {
		case err == nil:
			g, _, _ := p.Graph()
			if wrong := g.Validate(); len(wrong) > 0 {
				t.Errorf("%s: the graph is wrong: %v", name, wrong)
			}
			if filepath.Ext(name) == ".ovf" {
				compareWithGovmomi(t, filepath.Join(dir, name), g)
			}
			taken++
			fmt.Fprintf(&got, "%s → nodes %d\n", name, len(g.Nodes))
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		case errors.As(err, &refused):
			fmt.Fprintf(&got, "%s → refused %s\n", name, refused.Code)
			if !markedNegative(name) && !refusable(name, refused.Code) {
				t.Errorf("%s is well-formed, not marked negative, and refused: %v", name, err)
			}
			if len(err.Error()) < 40 {
				t.Errorf("%s: %q is no reason that a person can act on", name, err)
			}
			if *verbose {
				t.Logf("%s: %v", name, err)
			}
		default:
			t.Errorf("%s: an error without a code: %v", name, err)
		}
	}
	t.Logf("%d of %d descriptors give nodes", taken, len(files))
	if *update {
		if err := os.WriteFile(corpusGolden, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(corpusGolden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("verdicts differ from %s; if you know why they changed: go test ./handlers/ovf -run TestCorpus -update\n%s",
			corpusGolden, firstDifference(want, got.Bytes()))
	}
}

var verbose = flag.Bool("reasons", false, "log why descriptors are refused")

func TestCutDiskInArchive(t *testing.T) {
	dir, _ := corpus(t)
	_, err := Open(context.Background(), filepath.Join(dir, "vapi/library/testdata/ttylinux-pc_i486-16.1.ova"), Options{})
	wantCode(t, err, CodeFileSize)
}

func wantCode(t *testing.T, err error, code Code) {
	t.Helper()
	var refused *Error
	if !errors.As(err, &refused) || refused.Code != code {
		t.Errorf("refused with %v, %s is right", err, code)
	}
}

func firstDifference(want, got []byte) string {
	w, g := strings.Split(string(want), "\n"), strings.Split(string(got), "\n")
	for i := range max(len(w), len(g)) {
		switch {
		case i >= len(w):
			return "+ " + g[i]
		case i >= len(g):
			return "- " + w[i]
		case w[i] != g[i]:
			return "- " + w[i] + "\n+ " + g[i]
		}
	}
	return ""
}

// compareWithGovmomi holds processors and memory of a package of one machine against an independent reader, where that
// one can read the descriptor and there is nothing to choose from.
func compareWithGovmomi(t *testing.T, file string, g graph.Graph) {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	e, err := govmomi.Unmarshal(bytes.NewReader(data))
	if err != nil || e.VirtualSystem == nil || e.DeploymentOption != nil || len(e.VirtualSystem.VirtualHardware) != 1 {
		return
	}
	var cpus, interfaces int
	for _, it := range e.VirtualSystem.VirtualHardware[0].Item {
		switch {
		case it.ResourceType == nil || it.Bound != nil:
		case *it.ResourceType == govmomi.Processor && it.VirtualQuantity != nil:
			cpus += int(*it.VirtualQuantity)
		case *it.ResourceType == govmomi.EthernetAdapter:
			interfaces++
		}
	}
	for _, n := range g.Nodes {
		if n.Type != graph.Machine {
			continue
		}
		if cpus > 0 && n.Properties[propertyCPUs] != strconv.Itoa(cpus) {
			t.Errorf("%s: %s processors, govmomi finds %d", file, n.Properties[propertyCPUs], cpus)
		}
		have := 0
		for have < interfaces && n.Properties[interfaceProperty(have, "network")]+n.Properties[interfaceProperty(have, "model")] != "" {
			have++
		}
		if have != interfaces {
			t.Errorf("%s: %d interfaces, govmomi finds %d", file, have, interfaces)
		}
	}
}
