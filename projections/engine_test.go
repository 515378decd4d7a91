package projections

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestEngine runs testdata/engine: puts, deletions, lists, indexes and pages,
// now and as of earlier positions.
func TestEngine(t *testing.T) {
	datadriven.Walk(t, "testdata/engine", func(t *testing.T, path string) {
		s := openStore(t, "db", inMemory())
		defer s.Close()
		f, log := feedOf(t, s, things{}), newStream()
		stop := start(t, f, log)
		defer stop()
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "event" {
				seq := log.add(parseEdit(t, d.Input))
				must(t, f.WaitFor(t.Context(), seq))
				return fmt.Sprintf("position %d\n", seq)
			}
			v, err := f.Now()
			if d.HasArg("as-of") {
				v.Close()
				var seq uint64
				d.ScanArgs(t, "as-of", &seq)
				v, err = f.AsOf(seq)
			}
			if err != nil {
				return fmt.Sprintf("error: %v\n", err)
			}
			defer v.Close()
			switch d.Cmd {
			case "get":
				row, ok, err := thingRows.Get(v, keyParts(d.Input)...)
				must(t, err)
				if !ok {
					return "none\n"
				}
				return show(row)
			case "list":
				q := Query[thing]{}
				for _, a := range d.CmdArgs {
					switch a.Key {
					case "by":
						q.By = map[string]*Index[thing]{"tag": byTag, "value": byValue}[a.Vals[0]]
					case "prefix":
						q.Prefix = keyParts(a.Vals[0])
					case "limit":
						q.Limit, err = strconv.Atoi(a.Vals[0])
						must(t, err)
					case "as-of":
					default:
						t.Fatalf("unknown argument %s", a.Key)
					}
				}
				return listPages(t, v, q)
			case "raw":
				return raw(t, s)
			default:
				t.Fatalf("unknown command %s", d.Cmd)
				return ""
			}
		})
	})
}

// listPages shows all pages of a list.
func listPages(t *testing.T, v *View, q Query[thing]) string {
	var b strings.Builder
	for {
		page, err := thingRows.Scan(v, q)
		must(t, err)
		for _, row := range page.Rows {
			b.WriteString(show(row))
		}
		if page.Resume == "" {
			break
		}
		b.WriteString("-- more\n")
		q.Resume = page.Resume
	}
	if b.Len() == 0 {
		return "none\n"
	}
	return b.String()
}

// raw shows what Pebble holds of the projection, without the space numbers.
func raw(t *testing.T, s *Store) string {
	var b strings.Builder
	it, err := s.db.NewIter(nil)
	must(t, err)
	for it.First(); it.Valid(); it.Next() {
		k := it.Key()
		if k[0] == areaMeta {
			continue
		}
		n := split(k)
		fmt.Fprintf(&b, "%c %q", k[0], k[headLen:n])
		if seq, ok := sequenceOf(k[n:]); ok {
			fmt.Fprintf(&b, " @%d", seq)
		}
		fmt.Fprintf(&b, " = %q\n", it.Value())
	}
	must(t, errors.Join(it.Error(), it.Close()))
	return b.String()
}

// parts reads "a/b"; an empty text is no part.
func keyParts(s string) Key {
	if s = strings.TrimSpace(s); s == "" {
		return nil
	}
	return strings.Split(s, "/")
}

func show(r thing) string {
	return fmt.Sprintf("%s/%s value=%d tags=%s\n", r.Group, r.ID, r.Value, strings.Join(r.Tags, ","))
}

// parseEdit reads lines "put g/id value tag,tag", "delete g/id", "clear g".
func parseEdit(t *testing.T, text string) edited {
	var e edited
	for line := range strings.Lines(text) {
		w := strings.Fields(line)
		switch {
		case len(w) >= 3 && w[0] == "put":
			k := keyParts(w[1])
			n, err := strconv.ParseUint(w[2], 10, 64)
			must(t, err)
			row := thing{Group: k[0], ID: k[1], Value: n}
			if len(w) > 3 {
				row.Tags = strings.Split(w[3], ",")
			}
			e.Put = append(e.Put, row)
		case len(w) == 2 && w[0] == "delete":
			e.Delete = append(e.Delete, keyParts(w[1]))
		case len(w) == 2 && w[0] == "clear":
			e.Clear = w[1]
		default:
			t.Fatalf("cannot read %q", line)
		}
	}
	return e
}

func TestResumeTokenOfAnotherList(t *testing.T) {
	s := openStore(t, "db", inMemory())
	defer s.Close()
	f := feedOf(t, s, things{})
	log := newStream(edited{Put: []thing{{Group: "a", ID: "1"}, {Group: "a", ID: "2"}, {Group: "b", ID: "1", Tags: []string{"x"}}}})
	feedTo(t, f, log, 1)
	v, err := f.Now()
	must(t, err)
	defer v.Close()
	page, err := thingRows.Scan(v, Query[thing]{Limit: 1})
	must(t, err)
	for _, q := range []Query[thing]{
		{Resume: "%"}, {Resume: page.Resume, By: byTag}, {Resume: page.Resume, Prefix: Key{"b"}},
		{Resume: page.Resume[:len(page.Resume)-2]},
	} {
		if _, err := thingRows.Scan(v, q); codeOf(err) != CodeResumeInvalid {
			t.Errorf("%+v: %v", q, err)
		}
	}
}

// stray writes to a table that it does not declare.
type stray struct{ counts }

func (stray) Tables() []Described { return nil }

func TestUndeclaredTables(t *testing.T) {
	s := openStore(t, "db", inMemory())
	defer s.Close()
	if _, err := s.Feed(foreign{}); codeOf(err) != CodeUndeclared {
		t.Errorf("a table of another projection: %v", err)
	}
	f := feedOf(t, s, stray{})
	var stopped *StoppedError
	if err := f.Run(t.Context(), newStream(edited{})); !errors.As(err, &stopped) || codeOf(stopped.Err) != CodeUndeclared {
		t.Errorf("an undeclared table: %v", err)
	}
	if _, err := f.Now("nothing"); codeOf(err) != CodeUnknown {
		t.Errorf("an unknown projection: %v", err)
	}
	v, err := f.Now()
	must(t, err)
	defer v.Close()
	if _, _, err := thingRows.Get(v, "a"); codeOf(err) != CodeUnknown {
		t.Errorf("a table of a projection outside the view: %v", err)
	}
}

type foreign struct{ counts }

func (foreign) Tables() []Described { return []Described{thingRows} }
