package fault_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/fault"
)

type (
	storeCode string
	diskCode  string
)

func TestCodesOfTwoPackages(t *testing.T) {
	inner := fault.Wrap(storeCode("full"), io.ErrShortWrite, "%d bytes", 7)
	outer := fmt.Errorf("save: %w", fault.Wrap(diskCode("unreadable"), inner, "disk %s", "root"))
	if s, d := fault.CodeOf[storeCode](outer), fault.CodeOf[diskCode](outer); s != "full" || d != "unreadable" {
		t.Errorf("codes %q and %q", s, d)
	}
	if c := fault.CodeOf[diskCode](inner); c != "" {
		t.Errorf("a code of another package: %q", c)
	}
	if want := "save: unreadable: disk root: full: 7 bytes: short write"; outer.Error() != want || !errors.Is(outer, io.ErrShortWrite) {
		t.Errorf("%q, want %q", outer, want)
	}
	known, ok := errors.AsType[fault.Known](outer)
	if !ok {
		t.Fatal("nothing is known")
	}
	if code, text, next := known.Tell(); code != "unreadable" || text != "disk root: full: 7 bytes: short write" || next != "" {
		t.Errorf("told %q %q %q", code, text, next)
	}
	if _, ok := errors.AsType[fault.Known](io.EOF); ok || fault.CodeOf[diskCode](io.EOF) != "" {
		t.Error("an error without a code has one")
	}
}
