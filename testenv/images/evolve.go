package images

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"
)

// Change says how much of an image becomes different.
type Change struct {
	// Label names the change, 1 to 16 bytes as in Spec. Which files it takes depends on it, and its records are
	// added below a directory of the root named after it; a label can be used once per image.
	Label string
	// Edit and Delete are the numbers of files; Add is the number of new files, at most as many as are edited and
	// deleted together, since each one is the record of one of those.
	Edit, Delete, Add int
	// Time is what the touched files get (default: half a year after the image's last one). Its year is what edits of
	// licence headers write.
	Time time.Time
}

// Evolution says what Evolve did. Paths are those in the image, sorted.
type Evolution struct {
	Edited, Deleted, Added []string
	Elapsed                time.Duration
}

// record is the content of an added file: what happened to another one.
type record struct {
	Path   string `json:"path"`
	What   string `json:"what"` // edited or deleted
	Bytes  int64  `json:"bytes"`
	Before string `json:"sha256_before"`
	After  string `json:"sha256_after,omitempty"`
}

// fileRef is a regular file that may be taken.
type fileRef struct {
	path           string
	number, parent uint32
	inode          inode
}

// evolver changes a copy of an image in place.
type evolver struct {
	v       *volume
	f       *os.File
	change  Change
	result  Evolution
	records []record
}

// Evolve copies the image at from, which Build or Evolve made, to the path to, and edits, deletes and adds files in
// the copy. All is in place: an edited file keeps its blocks (the year in its licence header becomes the change's
// where it has one, else a line is appended where its last block has room), a deleted one leaves a hole, new files
// come behind all data. Files are taken by whole directories, as releases change packages. The copy appears at to
// complete or not at all, and the same image and Change give the same bytes.
//
// Errors: CodeSpec, CodeForeign, CodeTooFew, CodeFull, the context's, and those of reading and writing.
func Evolve(ctx context.Context, from, to string, change Change) (Evolution, error) {
	started := time.Now()
	if !labelForm.MatchString(change.Label) || change.Label == "." || change.Label == ".." {
		return Evolution{}, &Error{Code: CodeSpec, Text: fmt.Sprintf("label %q: 1 to 16 of a-z, 0-9, '.', '_', '-' are needed", change.Label)}
	}
	if change.Edit < 0 || change.Delete < 0 || change.Add < 0 || change.Add > change.Edit+change.Delete {
		return Evolution{}, &Error{Code: CodeSpec, Text: "a count is negative, or Add is above Edit and Delete together"}
	}
	source, err := os.Open(from)
	if err != nil {
		return Evolution{}, err
	}
	defer source.Close()
	v, err := open(source)
	if err != nil {
		return Evolution{}, err
	}
	if change.Time.IsZero() {
		change.Time = time.Unix(int64(v.written), 0).UTC().AddDate(0, 6, 0)
	}
	if !timeFits(change.Time) {
		return Evolution{}, &Error{Code: CodeSpec, Text: "the time is outside 1970 to 2038"}
	}
	e := &evolver{v: v, change: change}
	err = replace(to, func(f *os.File) error {
		if err := copySparse(ctx, f, source); err != nil {
			return err
		}
		e.f, v.out, v.written = f, f, uint32(change.Time.Unix())
		if err := e.run(ctx); err != nil {
			return err
		}
		return v.flush()
	})
	if err != nil {
		return Evolution{}, err
	}
	e.result.Elapsed = time.Since(started)
	return e.result, nil
}

func (e *evolver) run(ctx context.Context) error {
	files, err := e.candidates(ctx)
	if err != nil {
		return err
	}
	// Every step-th file goes, so that deletions are spread over the directories that change.
	step := 0
	if e.change.Delete > 0 {
		step = (e.change.Edit + e.change.Delete) / e.change.Delete
	}
	for i, f := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		edits, deletions := e.change.Edit-len(e.result.Edited), e.change.Delete-len(e.result.Deleted)
		switch {
		case edits == 0 && deletions == 0:
		case deletions > 0 && (edits == 0 || (i+1)%step == 0):
			err = e.remove(f)
		default:
			err = e.edit(f)
		}
		if err != nil {
			return err
		}
	}
	if len(e.result.Edited) < e.change.Edit || len(e.result.Deleted) < e.change.Delete {
		return &Error{Code: CodeTooFew, Text: fmt.Sprintf("%d of %d files could be edited and %d of %d deleted",
			len(e.result.Edited), e.change.Edit, len(e.result.Deleted), e.change.Delete)}
	}
	if err := e.add(); err != nil {
		return err
	}
	slices.Sort(e.result.Edited)
	slices.Sort(e.result.Deleted)
	slices.Sort(e.result.Added)
	return nil
}

// candidates are the files in the order in which they are taken: directory by directory, the directories in an order
// that is drawn from the label.
func (e *evolver) candidates(ctx context.Context) ([]fileRef, error) {
	byDir := map[uint32][]fileRef{}
	err := e.v.walk(ctx, e.f, func(number uint32, n inode, parent uint32, p string) error {
		if p == e.change.Label {
			return &Error{Code: CodeSpec, Text: fmt.Sprintf("the image has %q already: a label is used once", p)}
		}
		if n.mode&modeType == modeRegular && n.size > 0 && n.links == 1 {
			byDir[parent] = append(byDir[parent], fileRef{path: p, number: number, parent: parent, inode: n})
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	type drawn struct {
		rank [32]byte
		dir  uint32
	}
	var order []drawn
	for dir, files := range byDir {
		order = append(order, drawn{sha256.Sum256([]byte(e.change.Label + "\x00" + path.Dir(files[0].path))), dir})
	}
	slices.SortFunc(order, func(a, b drawn) int {
		return cmp.Or(bytes.Compare(a.rank[:], b.rank[:]), cmp.Compare(a.dir, b.dir))
	})
	var out []fileRef
	for _, d := range order {
		out = append(out, byDir[d.dir]...)
	}
	return out, nil
}

func (e *evolver) digest(n inode) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, n.reader(e.f)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

var copyrightYear = regexp.MustCompile(`(?i)copyright[^\n]{0,24}?\b((?:19|20)[0-9]{2})\b`)

// edit changes one file within its blocks, or leaves it as it is if it has neither a year nor room for a line.
func (e *evolver) edit(f fileRef) error {
	before, err := e.digest(f.inode)
	if err != nil {
		return err
	}
	head := make([]byte, min(f.inode.size, blockSize))
	if _, err := e.f.ReadAt(head, f.inode.blockAt(0)); err != nil {
		return err
	}
	year := strconv.Itoa(e.change.Time.Year())
	if at := copyrightYear.FindSubmatchIndex(head); at != nil && string(head[at[2]:at[3]]) != year {
		if _, err := e.f.WriteAt([]byte(year), f.inode.blockAt(0)+int64(at[2])); err != nil {
			return err
		}
	} else {
		line := e.line(f.path, head)
		used := f.inode.size % blockSize
		if used == 0 || used+int64(len(line)) > blockSize {
			return nil
		}
		if _, err := e.f.WriteAt(line, f.inode.blockAt(f.inode.size/blockSize)+used); err != nil {
			return err
		}
		f.inode.size += int64(len(line))
	}
	f.inode.time = e.v.written
	if err := e.v.putInode(f.number, f.inode); err != nil {
		return err
	}
	after, err := e.digest(f.inode)
	if err != nil {
		return err
	}
	e.result.Edited = append(e.result.Edited, f.path)
	e.records = append(e.records, record{Path: f.path, What: "edited", Bytes: f.inode.size, Before: before, After: after})
	return nil
}

// line is what is appended to a file: a comment where the file's kind has them.
func (e *evolver) line(p string, head []byte) []byte {
	prefix := "#"
	switch path.Ext(p) {
	case ".go", ".c", ".h", ".cc", ".js", ".mod", ".s", ".S":
		prefix = "//"
	}
	text := fmt.Sprintf("%s Revised by %s on %s.\n", prefix, e.change.Label, e.change.Time.UTC().Format(time.DateOnly))
	if !utf8.Valid(head[:min(len(head), 64)]) {
		text = "\x00" + text
	}
	return []byte(text)
}

func (e *evolver) remove(f fileRef) error {
	before, err := e.digest(f.inode)
	if err != nil {
		return err
	}
	if err := e.unlink(f.parent, f.number); err != nil {
		return err
	}
	e.v.free(f.inode.extents)
	g, i := place(f.number)
	clearBit(e.v.groups[g].inodes, i)
	if err := e.v.putInode(f.number, inode{mode: f.inode.mode, time: e.v.written, dtime: e.v.written}); err != nil {
		return err
	}
	e.result.Deleted = append(e.result.Deleted, f.path)
	e.records = append(e.records, record{Path: f.path, What: "deleted", Bytes: f.inode.size, Before: before})
	return nil
}

// eachBlock calls with for each block of a directory until it says that the block is changed, and writes that one.
func (e *evolver) eachBlock(dir uint32, with func(block []byte, in []slot) bool) (bool, error) {
	n, err := e.v.inode(dir)
	if err != nil {
		return false, err
	}
	block := make([]byte, blockSize)
	for i := range n.size / blockSize {
		at := n.blockAt(i)
		if _, err := e.f.ReadAt(block, at); err != nil {
			return false, err
		}
		in, err := slots(block)
		if err != nil {
			return false, err
		}
		if with(block, in) {
			if _, err := e.f.WriteAt(block, at); err != nil {
				return false, err
			}
			n.time = e.v.written
			return true, e.v.putInode(dir, n)
		}
	}
	return false, nil
}

// unlink gives an entry's room to the one before it, as the kernel does.
func (e *evolver) unlink(dir, number uint32) error {
	found, err := e.eachBlock(dir, func(block []byte, in []slot) bool {
		i := slices.IndexFunc(in, func(s slot) bool { return s.inode == number })
		switch {
		case i < 0:
			return false
		case i == 0:
			le.PutUint32(block[in[0].at:], 0)
		default:
			le.PutUint16(block[in[i-1].at+4:], uint16(in[i-1].length+in[i].length))
		}
		return true
	})
	if err == nil && !found {
		err = foreign("directory %d has no entry for inode %d", dir, number)
	}
	return err
}

// insert puts an entry into the room that another one leaves.
func (e *evolver) insert(dir uint32, d dirent) error {
	size := direntSize(d.name)
	found, err := e.eachBlock(dir, func(block []byte, in []slot) bool {
		for _, s := range in {
			used := 0
			if s.inode != 0 {
				used = direntSize(s.name)
			}
			if s.length-used < size {
				continue
			}
			if used > 0 {
				le.PutUint16(block[s.at+4:], uint16(used))
			}
			clear(block[s.at+used : s.at+s.length])
			putDirent(block[s.at+used:], s.length-used, d)
			return true
		}
		return false
	})
	if err == nil && !found {
		err = fullImage()
	}
	return err
}

// add writes the first records as files of a new directory of the root.
func (e *evolver) add() error {
	if e.change.Add == 0 {
		return nil
	}
	dir, err := e.v.allocateInode()
	if err != nil {
		return err
	}
	g, _ := place(dir)
	e.v.groups[g].usedDirs++
	entries := []dirent{{dir, typeDir, "."}, {rootInode, typeDir, ".."}}
	for i, r := range e.records[:e.change.Add] {
		text, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return err
		}
		runs, blocks, err := e.v.store(append(text, '\n'))
		if err != nil {
			return err
		}
		number, err := e.v.allocateInode()
		if err != nil {
			return err
		}
		err = e.v.putInode(number, inode{mode: modeRegular | 0o644, links: 1, size: int64(len(text) + 1), blocks: blocks,
			time: e.v.written, extents: runs})
		if err != nil {
			return err
		}
		name := fmt.Sprintf("%06d.json", i+1)
		entries = append(entries, dirent{number, typeRegular, name})
		e.result.Added = append(e.result.Added, path.Join(e.change.Label, name))
	}
	data := encodeDir(entries, 0)
	runs, blocks, err := e.v.store(data)
	if err != nil {
		return err
	}
	err = e.v.putInode(dir, inode{mode: modeDir | 0o755, links: 2, size: int64(len(data)), blocks: blocks,
		time: e.v.written, extents: runs})
	if err != nil {
		return err
	}
	if err := e.insert(rootInode, dirent{dir, typeDir, e.change.Label}); err != nil {
		return err
	}
	root, err := e.v.inode(rootInode)
	if err != nil {
		return err
	}
	if root.links++; root.links > maxLinks {
		return fullImage()
	}
	return e.v.putInode(rootInode, root)
}
