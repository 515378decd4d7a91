package projections

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/tombolo-vdc/tombolo/events"
)

// ReferenceKind is how a reference names a template.
type ReferenceKind string

// The kinds of reference (cl. 41-46), and the two that pin a version.
const (
	ByNumber   ReferenceKind = "number"   // 73291467
	ByName     ReferenceKind = "name"     // ajax-sales-demo, or the display name
	ByURL      ReferenceKind = "url"      // anything that ends in /t/73291467
	ByLocation ReferenceKind = "location" // loc:beijing/<slot>
	ByDigest   ReferenceKind = "digest"   // sha256:…, of a manifest; pinned
)

// Resolved is what a reference means at one position.
type Resolved struct {
	Kind     ReferenceKind   `json:"kind"`
	Template TemplateRow     `json:"template"`
	Version  int             `json:"version"`          // the active one, or the one pinned; 0 if none is active yet
	Pinned   bool            `json:"pinned"`           // the reference says which version, whatever is active
	Region   events.RegionID `json:"region,omitempty"` // where a location is
	Instance *InstanceRow    `json:"instance,omitempty"`
}

// NotFoundError says that a reference means nothing (any more).
type NotFoundError struct {
	Code      Code // CodeTemplateUnknown, CodeTemplateDeleted, CodeVersionUnknown, CodeVersionGone, CodeLocationUnknown, CodeLocationEmpty
	Reference string
	Detail    string
	Template  events.TemplateID // for CodeTemplateDeleted: which it was
	Deleted   Time              // when it ceased to mean something, for CodeTemplateDeleted and CodeVersionGone
}

func (e *NotFoundError) Error() string { return e.Detail }

// ErrorCode is the failure's code.
func (e *NotFoundError) ErrorCode() Code { return e.Code }

// AmbiguousError (CodeReferenceAmbiguous) says that a reference may mean several
// templates; the asker has to choose.
type AmbiguousError struct {
	Reference  string
	Candidates []TemplateRow
}

func (e *AmbiguousError) Error() string {
	var list []string
	for _, c := range e.Candidates {
		list = append(list, fmt.Sprintf("%s (%s)", c.Number, c.Name))
	}
	return fmt.Sprintf("%q may mean %s", e.Reference, strings.Join(list, " or "))
}

// ErrorCode is CodeReferenceAmbiguous.
func (e *AmbiguousError) ErrorCode() Code { return CodeReferenceAmbiguous }

func unknownTemplate(ref string) error {
	return &NotFoundError{Code: CodeTemplateUnknown, Reference: ref, Detail: fmt.Sprintf("there is no template %q", ref)}
}

// Resolve finds what a reference means among the account's templates. The kinds:
//
//   - a number: eight digits;
//   - a name: the slug, or the display name whatever its case and spacing; a slug
//     comes first, as it is unique among the live templates;
//   - a URL whose path ends in /t/<number>;
//   - a location "loc:<region>/<slot>". The slot <number> is indirect: whatever is
//     active there. Any other slot is direct, that of one instance as its agent
//     named it ("<number>@<version>" if it has not). Neither pins: after a
//     replacement the location means the version that took the instance's place,
//     in the same region ([0046]; cl. 32, 39, 44-46);
//   - the first, second or third with "@<version>" behind it: pinned;
//   - the digest of a manifest: pinned to the newest version with this content.
//
// Errors: *NotFoundError, *AmbiguousError. A deleted template is not found, with
// the time of its deletion; a pinned version is not found once it was abandoned
// or retired.
func (c Catalogue) Resolve(r Reader, account events.AccountID, ref string) (Resolved, error) {
	if d := events.Digest(ref); d.Valid() {
		return c.byDigest(r, account, d)
	}
	if rest, ok := strings.CutPrefix(ref, "loc:"); ok {
		return c.byLocation(r, account, ref, rest)
	}
	name, version, pinned := cutVersion(ref)
	t, kind, err := c.byWord(r, account, name)
	if pinned && isUnknown(err) { // a display name may end like a version
		if whole, k, werr := c.byWord(r, account, ref); werr == nil {
			t, kind, pinned, err = whole, k, false, nil
		}
	}
	if err != nil {
		return Resolved{}, err
	}
	out := Resolved{Kind: kind, Template: t, Version: t.Active, Pinned: pinned}
	if pinned {
		out.Version = version
		err = c.usable(r, ref, t, version)
	}
	return out, err
}

// cutVersion takes "@<version>" off.
func cutVersion(ref string) (string, int, bool) {
	i := strings.LastIndexByte(ref, '@')
	if i < 0 {
		return ref, 0, false
	}
	n, err := strconv.Atoi(ref[i+1:])
	if err != nil || n < 1 || ref[i+1] == '+' {
		return ref, 0, false
	}
	return ref[:i], n, true
}

func isUnknown(err error) bool {
	e, ok := err.(*NotFoundError)
	return ok && e.Code == CodeTemplateUnknown
}

func isNumber(s string) bool {
	return len(s) == 8 && strings.Trim(s, "0123456789") == ""
}

// byWord finds the template that a number, a name or a URL means.
func (c Catalogue) byWord(r Reader, account events.AccountID, word string) (TemplateRow, ReferenceKind, error) {
	if number, ok := numberOfURL(word); ok {
		t, err := c.byNumber(r, account, word, number)
		return t, ByURL, err
	}
	if isNumber(word) {
		if t, err := c.byNumber(r, account, word, word); !isUnknown(err) {
			return t, ByNumber, err
		}
	}
	t, err := c.byName(r, account, word)
	return t, ByName, err
}

// numberOfURL reads …/t/<number>, with or without a host, as a browser or a
// person would write it.
func numberOfURL(ref string) (string, bool) {
	if !strings.Contains(ref, "/") {
		return "", false
	}
	u, err := url.Parse(ref)
	if err != nil {
		return "", false
	}
	parts := strings.Split(strings.TrimSuffix(u.Path, "/"), "/")
	n := len(parts)
	if n < 2 || parts[n-2] != "t" || !isNumber(parts[n-1]) {
		return "", false
	}
	return parts[n-1], true
}

func (Catalogue) byNumber(r Reader, account events.AccountID, ref, number string) (TemplateRow, error) {
	t, ok, err := templates.Get(r, string(account), number)
	switch {
	case err != nil:
		return t, err
	case !ok:
		return t, unknownTemplate(ref)
	}
	return t, t.whetherLive(ref)
}

func (t TemplateRow) whetherLive(ref string) error {
	if t.live() {
		return nil
	}
	return &NotFoundError{Code: CodeTemplateDeleted, Reference: ref, Template: t.Number, Deleted: t.Deleted,
		Detail: fmt.Sprintf("template %s (%s) was deleted at %s", t.Number, t.Name, t.Deleted.Format("2006-01-02T15:04:05.000Z07:00"))}
}

func (c Catalogue) byName(r Reader, account events.AccountID, word string) (TemplateRow, error) {
	if t, ok, err := c.Named(r, account, word); err != nil || ok {
		return t, err
	}
	found, err := gather(templates, r, Query[TemplateRow]{By: templateSpellings, Prefix: Key{string(account), foldSpelling(word)}})
	if err != nil {
		return TemplateRow{}, err
	}
	var live []TemplateRow
	var last TemplateRow
	for _, t := range found {
		switch {
		case t.live():
			live = append(live, t)
		case t.Deleted.After(last.Deleted.Time):
			last = t
		}
	}
	switch {
	case len(live) == 1:
		return live[0], nil
	case len(live) > 1:
		return TemplateRow{}, &AmbiguousError{word, live}
	case last.Number != "":
		return TemplateRow{}, last.whetherLive(word)
	}
	return TemplateRow{}, unknownTemplate(word)
}

// usable says whether a pinned version may still be meant.
func (c Catalogue) usable(r Reader, ref string, t TemplateRow, version int) error {
	v, ok, err := c.Version(r, t.Number, version)
	switch {
	case err != nil:
		return err
	case !ok:
		return &NotFoundError{Code: CodeVersionUnknown, Reference: ref,
			Detail: fmt.Sprintf("template %s (%s) has no version %d", t.Number, t.Name, version)}
	case v.State == VersionAbandoned || v.State == VersionRetired:
		return &NotFoundError{Code: CodeVersionGone, Reference: ref, Deleted: v.Ended,
			Detail: fmt.Sprintf("version %d of template %s (%s) was %s at %s", version, t.Number, t.Name, v.State, v.Ended.Format("2006-01-02T15:04:05.000Z07:00"))}
	}
	return nil
}

func (c Catalogue) byDigest(r Reader, account events.AccountID, d events.Digest) (Resolved, error) {
	found, err := gather(versions, r, Query[VersionRow]{By: versionManifests, Prefix: Key{string(account), string(d)}})
	if err != nil {
		return Resolved{}, err
	}
	var candidates []TemplateRow
	var out Resolved
	gone := unknownTemplate(string(d))
	for _, v := range found { // by number, then version: the newest of a template comes last
		t, ok, err := c.Template(r, account, v.Template)
		if err != nil || !ok {
			return Resolved{}, err
		}
		why := t.whetherLive(string(d))
		if why == nil {
			why = c.usable(r, string(d), t, v.Version)
		}
		if why != nil {
			gone = why
			continue
		}
		if len(candidates) == 0 || candidates[len(candidates)-1].Number != t.Number {
			candidates = append(candidates, t)
		}
		out = Resolved{Kind: ByDigest, Template: t, Version: v.Version, Pinned: true}
	}
	switch len(candidates) {
	case 0:
		return Resolved{}, gone
	case 1:
		return out, nil
	}
	return Resolved{}, &AmbiguousError{string(d), candidates}
}

// byLocation goes by what the slot is named after or by whose it is, and then to
// the active version in the same region.
func (c Catalogue) byLocation(r Reader, account events.AccountID, ref, place string) (Resolved, error) {
	region, slot, ok := strings.Cut(place, "/")
	missing := func(code Code, format string, args ...any) error {
		return &NotFoundError{Code: code, Reference: ref, Detail: fmt.Sprintf(format, args...)}
	}
	if !ok || region == "" || slot == "" {
		return Resolved{}, missing(CodeLocationUnknown, "%q is not a location: loc:<region>/<slot>", ref)
	}
	number := slot
	if !isNumber(slot) {
		page, err := instances.Scan(r, Query[InstanceRow]{By: instancesSlot, Prefix: Key{string(account), region, slot}, Limit: 1})
		if err != nil {
			return Resolved{}, err
		}
		if len(page.Rows) == 0 {
			return Resolved{}, missing(CodeLocationUnknown, "nothing was ever stored at %s", ref)
		}
		number = string(page.Rows[0].Template)
	}
	t, err := c.byNumber(r, account, ref, number)
	if err != nil {
		return Resolved{}, err
	}
	if t.Active > 0 {
		page, err := instances.Scan(r, Query[InstanceRow]{Prefix: Key{string(account), number, region, Number(uint64(t.Active))}, Limit: 1})
		if err != nil {
			return Resolved{}, err
		}
		if len(page.Rows) == 1 && page.Rows[0].Condition != ConditionRemoved {
			return Resolved{Kind: ByLocation, Template: t, Version: t.Active, Region: events.RegionID(region), Instance: &page.Rows[0]}, nil
		}
	}
	return Resolved{}, missing(CodeLocationEmpty, "%s holds no active version of template %s (%s)", region, t.Number, t.Name)
}
