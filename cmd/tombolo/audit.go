package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/api"
)

var (
	digestColumns = []column{{"READ MODEL", "projection", false}, {"SHAPE", "shape", false}, {"DIGEST", "digest", false}, {"BUILDING", "building", false}}
	changeColumns = []column{{"KIND", "kind", false}, {"NAME", "name", false}, {"CHANGE", "change", false}, {"FIELDS", "fields", false}, {"ID", "id", true}}
	momentShape   = shape{items: "templates", name: "number", columns: templateColumns}
)

func (a *app) auditCommand() *cobra.Command {
	c := noun("audit", "What happened, how things stood, and whether it is all there", a.auditLog(), a.auditAt(), a.auditReplay(), a.auditDiff(), a.auditExport(), a.auditVerify(),
		a.verb("digests", "Digests of the read models, to compare (--as-of) with another's or a replay's", cobra.NoArgs, func(ctx context.Context, _ []string) error {
			return a.showOne(ctx, "/v1/audit/digests", nil, shape{items: "items", name: "projection", columns: digestColumns})
		}),
		a.verb("rebuild [READ-MODEL]", "Build read models again beside those that answer, and put them in their place", cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
			c, err := a.ready()
			if err != nil {
				return err
			}
			body := map[string]string{}
			if len(args) > 0 {
				body["projection"] = args[0]
			}
			b, _, err := c.write(ctx, http.MethodPost, "/v1/audit/rebuild", body)
			if err != nil {
				return err
			}
			return a.show(b, shape{items: "items", name: "projection", columns: digestColumns})
		}))
	c.Long = `What happened, how things stood, and whether it is all there.

Every event carries the digest of its aggregate's event before it, and its sequence in the journal. "audit verify" walks
these chains and names the first event that was altered, is missing or stands at another's place.

Nothing signs the chain yet: whoever can write the store can also write a whole journal anew, with digests that fit, or
cut off its end. A head that you note down (verify prints it, as SEQUENCE:DIGEST) and give to a later verify as --head
shows both. An export alone, without a head and without the server, does not show that its end is missing.`
	return c
}

func (a *app) auditLog() *cobra.Command {
	var filter eventFilter
	log := filter.flags(a.verb("log", "The journal's records", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		c, err := a.ready()
		if err != nil {
			return err
		}
		if filter.until == "" {
			filter.until = a.asOf
		}
		return c.history(ctx, filter.query())
	}))
	log.Flags().StringVar(&filter.until, "until", "", "nothing after this sequence or RFC 3339 time (so is --as-of)")
	return log
}

func (a *app) auditAt() *cobra.Command {
	return a.verb("at SEQ|TIME", "The catalogue as of then", cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		return a.showOne(ctx, "/v1/audit/at/"+url.PathEscape(args[0]), nil, momentShape)
	})
}

func (a *app) auditDiff() *cobra.Command {
	return a.verb("diff SEQ|TIME SEQ|TIME", "What changed in the catalogue between two moments", cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
		return a.showOne(ctx, "/v1/audit/diff", url.Values{"from": {args[0]}, "to": {args[1]}}, shape{items: "items", name: "id", columns: changeColumns})
	})
}

func (a *app) auditReplay() *cobra.Command {
	var until, file string
	var digests bool
	replay := a.verb("replay --until SEQ|TIME", "The catalogue as of then, folded anew from the journal alone (or from an export)", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		switch {
		case until == "":
			return usage("audit replay needs --until SEQ|TIME")
		case digests && file != "":
			return usage("audit replay --digests asks the server, and --file does not")
		case file != "":
			return a.replayFile(ctx, file, until)
		}
		path, s := "/v1/audit/replay/"+url.PathEscape(until), momentShape
		if digests {
			path, s = path+"/digests", shape{items: "items", name: "projection", columns: digestColumns}
		}
		return a.showOne(ctx, path, nil, s)
	})
	replay.Flags().StringVar(&until, "until", "", "sequence or RFC 3339 time")
	replay.Flags().BoolVar(&digests, "digests", false, "digests of the read models rather than the catalogue; as audit digests --as-of")
	replay.Flags().StringVar(&file, "file", "", "an export of all accounts; no server is asked. The account is --account, or default")
	return replay
}

// replayFile folds an export, once it is known to be whole.
func (a *app) replayFile(ctx context.Context, file, until string) error {
	if err := a.checkOutput(); err != nil {
		return err
	}
	if _, err := a.verifyFile(file, false, ""); err != nil {
		return err
	}
	sequence, err := strconv.ParseUint(until, 10, 64)
	var to time.Time
	if err != nil {
		if to, err = time.Parse(time.RFC3339, until); err != nil {
			return usage("--until %s is neither a sequence nor an RFC 3339 time", until)
		}
	}
	account := accountID(a.account)
	if account == "" {
		account = "default"
	}
	m, err := api.ReplayExport(ctx, func() (io.ReadCloser, error) { return os.Open(file) }, sequence, to, account)
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fail(exitError, "as-of-future", "%s ends before %s", file, until).withNext("tombolo audit export --to %s fetches the rest", file)
	}
	if err != nil {
		return err
	}
	b, err := plainJSON(m)
	if err != nil {
		return err
	}
	return a.show(b, momentShape)
}

// plainJSON is JSON as the server sends it, without HTML's escapes.
func plainJSON(v any) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return out.Bytes(), err
}

// whole is the client for everything that the credential may see, unless an account was named.
func (c *client) whole() *client {
	w := *c
	if c.app.account == "" && c.app.env("TOMBOLO_ACCOUNT") == "" {
		w.context.Account = w.context.Home
	}
	return &w
}

func (a *app) auditExport() *cobra.Command {
	var to, until string
	export := a.verb("export --to FILE", "Write the events to a file, one CloudEvent as JSON a line; a file that is there is continued", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		if to == "" {
			return usage("audit export needs --to FILE")
		}
		c, err := a.ready()
		if err != nil {
			return err
		}
		return c.whole().exportEvents(ctx, to, until)
	})
	export.Flags().StringVar(&to, "to", "", "file to write, or to continue")
	export.Flags().StringVar(&until, "until", "", "nothing after this sequence or RFC 3339 time")
	return export
}

// export appends to the file what it lacks.
func (c *client) exportEvents(ctx context.Context, path, until string) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fail(exitError, "file-unwritable", "the export cannot be written: %v", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	last, source, err := continued(f, path)
	if err != nil {
		return err
	}
	q := url.Values{"limit": {"1000"}, "from": {strconv.FormatUint(last+1, 10)}}
	set(q, "until", until)
	written := 0
	err = c.pages(ctx, q, func(items []json.RawMessage, _ []byte) error {
		var out bytes.Buffer
		for _, e := range items {
			record, _, of, err := api.ReadEvent(e)
			if err != nil {
				return fail(exitError, "not-tombolo", "the server's answer cannot be read: %v", err)
			}
			if source != "" && of != source {
				return fail(exitConflict, "export-of-another", "%s is of the journal %s, and this one is %s; nothing more was written", path, source, of).withNext("choose another file")
			}
			if err := json.Compact(&out, e); err != nil {
				return err
			}
			out.WriteByte('\n')
			source, last = of, record.Sequence
			written++
		}
		if _, err := f.Write(out.Bytes()); err != nil {
			return fail(exitError, "file-unwritable", "the export cannot be written: %v", err).withNext("once there is room, the same command goes on")
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	b, err := json.Marshal(map[string]any{"file": path, "events": written, "last": last, "source": source})
	if err != nil {
		return err
	}
	return c.app.show(b, shape{items: "", name: "file", columns: []column{{"FILE", "file", false}, {"EVENTS WRITTEN", "events", false}, {"LAST SEQUENCE", "last", false}, {"JOURNAL", "source", true}}})
}

// continued finds where an export goes on, and cuts off a line that was being written when it broke off.
func continued(f *os.File, path string) (last uint64, source string, err error) {
	b, err := io.ReadAll(f)
	if err != nil {
		return 0, "", err
	}
	end := bytes.LastIndexByte(b, '\n') + 1
	if end > 0 {
		line := b[bytes.LastIndexByte(b[:end-1], '\n')+1 : end-1]
		r, _, of, err := api.ReadEvent(line)
		if err != nil {
			return 0, "", fail(exitConflict, "export-unreadable", "%s is there and does not end as an export does: %v", path, err).withNext("choose another file; audit verify --file says more")
		}
		last, source = r.Sequence, of
	} else if len(b) > 0 && b[0] != '{' {
		return 0, "", fail(exitConflict, "export-unreadable", "%s is there and is no export", path).withNext("choose another file")
	}
	if err := f.Truncate(int64(end)); err != nil {
		return 0, "", err
	}
	_, err = f.Seek(int64(end), io.SeekStart)
	return last, source, err
}

func (a *app) auditVerify() *cobra.Command {
	var file, head string
	var partial, live bool
	verify := a.verb("verify", "Check that every event is there, unaltered and in its place", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		if err := a.checkOutput(); err != nil {
			return err
		}
		if partial && (file == "" || live) {
			return usage("--partial is for a file of one account's events, which cannot be compared with the whole journal")
		}
		if live && file == "" {
			return usage("--live compares a file (--file) with the server's journal")
		}
		if file != "" {
			if _, err := api.KnownHead(head); err != nil {
				return usage("--head: %v", err)
			}
		}
		v, err := api.Verification{}, error(nil)
		switch {
		case live:
			v, err = a.verifyAgainst(ctx, file, head)
		case file != "":
			v, err = a.verifyFile(file, partial, head)
		default:
			v, err = a.verifyServer(ctx, head)
		}
		if err != nil {
			return err
		}
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		return a.show(b, shape{items: "", name: "head", columns: []column{{"OK", "ok", false}, {"EVENTS", "events", false}, {"AGGREGATES", "aggregates", false}, {"HEAD", "head", false}, {"JOURNAL", "source", true}}})
	})
	f := verify.Flags()
	f.StringVar(&file, "file", "", "check this export, without asking the server")
	f.BoolVar(&live, "live", false, "with --file: compare it with the server's journal too; a missing end is seen then")
	f.BoolVar(&partial, "partial", false, "with --file: it holds one account's events, so sequences have gaps")
	f.StringVar(&head, "head", "", "SEQUENCE:DIGEST that a verify printed before: with it a missing end and rewritten events are seen")
	verify.Long = `Check that every event is there, unaltered and in its place.

Without --file the server walks its journal; with it the export is checked here, and no server is asked. What is found
first is named, with exit code 1: event-altered, event-missing, event-swapped, event-unreadable, head-differs, tail-missing.

The chain of digests is not signed. By itself it does not show that the end of an export was cut off, nor that somebody
wrote everything anew from some event on and computed the digests again. --head, or --live, shows both.`
	return verify
}

// verifyFile checks an export by itself.
func (a *app) verifyFile(file string, partial bool, head string) (api.Verification, error) {
	known, err := api.KnownHead(head)
	if err != nil {
		return api.Verification{}, err
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return api.Verification{}, fail(exitNotFound, "file-missing", "there is no file %s", file)
	}
	if err != nil {
		return api.Verification{}, fail(exitError, "file-unreadable", "the export cannot be read: %v", err)
	}
	v, err := api.VerifyExport(f, partial, known)
	if err = errors.Join(err, f.Close()); err != nil {
		return v, fail(exitError, "file-unreadable", "the export cannot be read: %v", err)
	}
	return v, wrong(v)
}

// verifyServer has the server walk its journal.
func (a *app) verifyServer(ctx context.Context, head string) (v api.Verification, err error) {
	c, err := a.ready()
	if err != nil {
		return v, err
	}
	q := url.Values{}
	set(q, "head", head)
	r, err := c.whole().request(ctx, http.MethodGet, "/v1/audit/verify", q, nil)
	if err != nil {
		return v, err
	}
	b, _, err := c.send(r)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fail(exitError, "not-tombolo", "the server's answer cannot be read: %v", err)
	}
	return v, wrong(v)
}

// verifyAgainst checks an export by itself, and then against the journal: it must hold the same events, and all of them.
func (a *app) verifyAgainst(ctx context.Context, file, head string) (api.Verification, error) {
	v, err := a.verifyFile(file, false, head)
	if err != nil {
		return v, err
	}
	head = "" // the journal passes through the file's head, if that has one
	if v.Events > 0 {
		head = v.Head
	}
	live, err := a.verifyServer(ctx, head)
	if err != nil {
		return v, err
	}
	if live.Events > v.Events {
		return v, fail(exitError, "tail-missing", "%s ends at sequence %d, and the journal at %d", file, v.Events, live.Events).withNext("tombolo audit export --to %s fetches the rest", file)
	}
	return v, nil
}

// wrong is the failure that a verification's finding is.
func wrong(v api.Verification) error {
	if v.Finding == nil {
		return nil
	}
	f := fail(exitError, v.Finding.Code, "%s", v.Finding.Detail)
	f.Where = fmt.Sprintf("sequence %d", v.Finding.Sequence)
	if v.Finding.Subject != "" {
		f.Where += " of " + string(events.SubjectPrefix) + v.Finding.Subject
	}
	return f.withNext("%d events before it are as they were written, up to %s", v.Events, v.Head)
}
