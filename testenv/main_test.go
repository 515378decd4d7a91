package testenv

import (
	"os"
	"testing"

	"github.com/tombolo-vdc/tombolo/testenv/faults"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(faults.Env); dir != "" {
		os.Exit(faults.Main(faults.Dir(dir), os.Args[1:]))
	}
	if plan := os.Getenv(readerEnv); plan != "" {
		os.Exit(mainReader(plan))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "tombolo-testenv-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	realBinary.dir = dir
	return m.Run()
}

// realBinary is the real one, built once for all tests of this run.
var realBinary struct {
	Binary
	dir string
}

func realProgram(t testing.TB) Real {
	t.Helper()
	path, err := realBinary.Build(realBinary.dir)
	if err != nil {
		t.Fatal(err)
	}
	return Real{path}
}
