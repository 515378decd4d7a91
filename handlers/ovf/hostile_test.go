package ovf

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/disks"
)

// envelopeWith is a small package's descriptor around references, disks and the rest of a machine's hardware.
func envelopeWith(references, diskSection, items string) string {
	return `<?xml version="1.0"?><Envelope xmlns="` + space1 + `" xmlns:ovf="` + space1 + `" xmlns:rasd="` + spaceCIM + `cim-schema/2/CIM_ResourceAllocationSettingData">
<References>` + references + `</References><DiskSection><Info/>` + diskSection + `</DiskSection>
<VirtualSystem ovf:id="vm"><Info/><VirtualHardwareSection><Info/>` + items + `</VirtualHardwareSection></VirtualSystem></Envelope>`
}

const driveItem = `<Item><rasd:HostResource>ovf:/disk/d1</rasd:HostResource><rasd:InstanceID>9</rasd:InstanceID><rasd:ResourceType>17</rasd:ResourceType></Item>`

func oneDisk(file, attrs string, capacity int64) string {
	return envelopeWith(`<File ovf:id="f1" ovf:href="`+file+`" `+attrs+`/>`,
		fmt.Sprintf(`<Disk ovf:diskId="d1" ovf:fileRef="f1" ovf:capacity="%d" ovf:format="%s"/>`, capacity, formatRaw), driveItem)
}

// packed makes an archive; a header without content has size zero.
func packed(t *testing.T, entries ...entryOf) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "hostile.ova")
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.Size == 0 {
			e.Size = int64(len(e.content))
		}
		if e.Typeflag == 0 {
			e.Typeflag = tar.TypeReg
		}
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	// A header that promises more than there is keeps the writer from closing well: that is wanted here.
	if err := w.Close(); err != nil && !strings.Contains(err.Error(), "missed writing") {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

type entryOf struct {
	tar.Header
	content string
}

func plain(name, content string) entryOf {
	return entryOf{tar.Header{Name: name, Mode: 0o600}, content}
}

func special(name string, kind byte) entryOf {
	return entryOf{tar.Header{Name: name, Typeflag: kind, Linkname: "/etc/passwd"}, ""}
}

func TestHostileArchives(t *testing.T) {
	good := plain("a.ovf", envelopeWith("", "", ""))
	many := []entryOf{good}
	for i := range 5000 {
		many = append(many, plain(fmt.Sprint("f", i), ""))
	}
	for name, c := range map[string]struct {
		code    Code
		entries []entryOf
	}{
		"path traversal":        {CodeEntryName, []entryOf{good, plain("../../etc/cron.d/x", "x")}},
		"traversal in between":  {CodeEntryName, []entryOf{good, plain("a/../../x", "x")}},
		"absolute name":         {CodeEntryName, []entryOf{good, plain("/etc/passwd", "x")}},
		"Windows name":          {CodeEntryName, []entryOf{good, plain(`..\x`, "x")}},
		"symbolic link":         {CodeEntryType, []entryOf{good, special("d.img", tar.TypeSymlink)}},
		"hard link":             {CodeEntryType, []entryOf{good, special("d.img", tar.TypeLink)}},
		"device":                {CodeEntryType, []entryOf{good, special("d.img", tar.TypeBlock)}},
		"pipe":                  {CodeEntryType, []entryOf{good, special("d.img", tar.TypeFifo)}},
		"folder":                {CodeEntryType, []entryOf{good, special("d/", tar.TypeDir)}},
		"twice":                 {CodeEntryTwice, []entryOf{good, plain("d", "1"), plain("./d", "2")}},
		"too many":              {CodeTooManyEntries, many},
		"larger than it is":     {CodeEntryTooLarge, []entryOf{good, {tar.Header{Name: "d.img", Size: 1 << 40}, ""}}},
		"largest there is":      {CodeEntryTooLarge, []entryOf{good, {tar.Header{Name: "d.img", Size: 1<<63 - 1}, ""}}},
		"two descriptors":       {CodeManyDescriptors, []entryOf{good, plain("b.ovf", "x")}},
		"no descriptor":         {CodeNoDescriptor, []entryOf{plain("disk.img", "x")}},
		"large descriptor":      {CodeDescriptorSize, []entryOf{plain("a.ovf", strings.Repeat(" ", 17<<20))}},
		"not in the manifest":   {CodeNotListed, []entryOf{good, plain("a.mf", sha1Line(good)), plain("stowaway", "x")}},
		"missing":               {CodeFileMissing, []entryOf{good, plain("a.mf", sha1Line(good)+"SHA1(b)= "+strings.Repeat("0", 40)+"\n")}},
		"wrong digest":          {CodeDigest, []entryOf{good, plain("a.mf", "SHA1(a.ovf)= "+strings.Repeat("0", 40)+"\n")}},
		"certificate alone":     {CodeFileMissing, []entryOf{good, plain("a.cert", "x")}},
		"no certificate at all": {CodeCertificate, []entryOf{good, plain("a.mf", sha1Line(good)), plain("a.cert", "SHA1(a.mf)= 00\nnothing")}},
		"manifest of nonsense":  {CodeManifest, []entryOf{good, plain("a.mf", "rm -rf /\n")}},
		"href outside":          {CodeHref, []entryOf{plain("a.ovf", oneDisk("../../etc/shadow", "", 512))}},
		"href escaped outside":  {CodeHref, []entryOf{plain("a.ovf", oneDisk("%2e%2e/etc/shadow", "", 512))}},
		"href elsewhere":        {CodeHref, []entryOf{plain("a.ovf", oneDisk("http://169.254.169.254/x", "", 512))}},
		"huge capacity":         {CodeInvalid, []entryOf{plain("a.ovf", oneDisk("d.img", "", 1<<62))}},
		"endless parts":         {CodeInvalid, []entryOf{plain("a.ovf", oneDisk("d.img", `ovf:size="1000000000000" ovf:chunkSize="1"`, 512))}},
		"empty archive":         {CodeArchiveDamaged, nil},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Open(context.Background(), packed(t, c.entries...), Options{})
			if err == nil {
				p.Close()
			}
			wantCode(t, err, c.code)
		})
	}
}

func sha1Line(e entryOf) string {
	return fmt.Sprintf("SHA1 (%s) = %x\r\n", e.Name, sha1.Sum([]byte(e.content)))
}

func TestHostileDescriptors(t *testing.T) {
	for name, c := range map[string]struct {
		code Code
		text string
	}{
		"entity bomb":         {CodeXMLForbidden, `<!DOCTYPE lolz [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><Envelope>&b;</Envelope>`},
		"file as entity":      {CodeXMLForbidden, `<!DOCTYPE x SYSTEM "file:///etc/passwd"><Envelope/>`},
		"undeclared entity":   {CodeXML, `<Envelope>&b;</Envelope>`},
		"deep":                {CodeDescriptorSize, strings.Repeat("<a>", 5_000_000)},
		"wide":                {CodeDescriptorSize, "<a>" + strings.Repeat("<b/>", 4_000_000)},
		"many attributes":     {CodeDescriptorSize, "<a" + strings.Repeat(` b=""`, 3_000_000) + "/>"},
		"one long text":       {CodeNotEnvelope, "<a>" + strings.Repeat("x", 15<<20) + "</a>"},
		"one long name":       {CodeXML, "<" + strings.Repeat("x", 15<<20)},
		"endless comment":     {CodeXML, "<!--" + strings.Repeat("x", 15<<20)},
		"many same names":     {CodeDescriptorSize, manyProperties(150_000)},
		"two roots":           {CodeXML, "<Envelope/><Envelope/>"},
		"other root":          {CodeNotEnvelope, "<html/>"},
		"required section":    {CodeSectionRequired, strings.Replace(envelopeWith("", "", ""), "<VirtualSystem ", `<x:Odd xmlns:x="urn:x"/><VirtualSystem `, 1)},
		"required device":     {CodeHardwareRequired, envelopeWith("", "", `<Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>89</rasd:ResourceType></Item>`)},
		"delta disk":          {CodeParentDisk, strings.Replace(oneDisk("d", "", 512), "<Disk ", `<Disk ovf:parentRef="base" `, 1)},
		"disk without a file": {CodeFileMissing, oneDisk("d.img", "", 512)},
		"strange compression": {CodeCompression, oneDisk("d.img", `ovf:compression="lzma"`, 512)},
		"processors":          {CodeInvalid, envelopeWith("", "", `<Item><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>3</rasd:ResourceType><rasd:VirtualQuantity>100000</rasd:VirtualQuantity></Item>`)},
		"memory overflow":     {CodeInvalid, envelopeWith("", "", `<Item><rasd:AllocationUnits>byte * 2^62 * 8</rasd:AllocationUnits><rasd:InstanceID>1</rasd:InstanceID><rasd:ResourceType>4</rasd:ResourceType><rasd:VirtualQuantity>4</rasd:VirtualQuantity></Item>`)},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "a.ovf")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			begun := time.Now()
			p, err := Open(context.Background(), file, Options{})
			if err == nil {
				p.Close()
			}
			wantCode(t, err, c.code)
			runtime.ReadMemStats(&after)
			if took, bytes := time.Since(begun), after.TotalAlloc-before.TotalAlloc; took > 10*time.Second || bytes > 512<<20 {
				t.Errorf("refused after %s and %d MiB allocated", took, bytes>>20)
			}
		})
	}
}

func manyProperties(n int) string {
	var b strings.Builder
	b.WriteString(`<Envelope xmlns="` + space1 + `"><References/><VirtualSystem id="a"><ProductSection>`)
	for i := range n {
		fmt.Fprintf(&b, `<Property key="é%d" type="string"/>`, i)
	}
	return b.String() + "</ProductSection></VirtualSystem></Envelope>"
}

// A descriptor of 50 MB is not even read.
func TestLargeDescriptor(t *testing.T) {
	file := filepath.Join(t.TempDir(), "a.ovf")
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(50 << 20); err != nil {
		t.Fatal(err)
	}
	_, err = Open(context.Background(), file, Options{})
	wantCode(t, err, CodeDescriptorSize)
}

func zipped(t *testing.T, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Disks that are compressed as a whole, or cut into parts, read as the disk; bombs and cuts are refused, and the scratch
// folder is empty afterwards.
func TestCompressedAndCutDisks(t *testing.T) {
	raw := bytes.Repeat([]byte("compresses well "), 64<<10) // 1 MiB
	gz := zipped(t, raw)
	const attrs = `ovf:compression="gzip"`
	for name, c := range map[string]struct {
		code  Code
		ovf   string
		files map[string][]byte
	}{
		"gzip":       {"", oneDisk("d.gz", attrs, 1<<20), map[string][]byte{"d.gz": gz}},
		"zeros fill": {"", oneDisk("d.gz", attrs, 2<<20), map[string][]byte{"d.gz": gz}},
		"parts": {"", oneDisk("d.img", `ovf:size="1048576" ovf:chunkSize="400000"`, 1<<20), map[string][]byte{
			"d.img.000000000": raw[:400000], "d.img.000000001": raw[400000:800000], "d.img.000000002": raw[800000:]}},
		"bomb":     {CodeExpandsTooMuch, oneDisk("d.gz", attrs, 512), map[string][]byte{"d.gz": zipped(t, make([]byte, 64<<20))}},
		"too long": {CodeDiskSize, oneDisk("d.gz", attrs, 512), map[string][]byte{"d.gz": gz}},
		"cut":      {Code(disks.CodeDamaged), oneDisk("d.gz", attrs, 1<<20), map[string][]byte{"d.gz": gz[:len(gz)/2]}},
		"no gzip":  {Code(disks.CodeDamaged), oneDisk("d.gz", attrs, 1<<20), map[string][]byte{"d.gz": []byte("text")}},
	} {
		t.Run(name, func(t *testing.T) {
			dir, scratch := t.TempDir(), t.TempDir()
			c.files["a.ovf"] = []byte(c.ovf)
			for name, content := range c.files {
				if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			p, err := Open(context.Background(), dir, Options{ScratchDir: scratch})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			d, err := p.OpenDisk(context.Background(), 0)
			if c.code != "" {
				wantCode(t, err, c.code)
			} else if err != nil {
				t.Error(err)
			} else {
				got := make([]byte, d.Size())
				if _, err := d.ReadAt(got, 0); err != nil || !bytes.Equal(got[:len(raw)], raw) || !allZero(got[len(raw):]) {
					t.Errorf("the disk reads differently (%v)", err)
				}
				if err := d.Close(); err != nil {
					t.Error(err)
				}
			}
			if left, err := os.ReadDir(scratch); err != nil || len(left) > 0 {
				t.Errorf("left in the scratch folder: %v (%v)", left, err)
			}
		})
	}
}

// A link in a folder that leads out of it is not followed, and a file that changes after it was verified is not read.
func TestFolderIsHeldTo(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a.ovf", oneDisk("d.img", "", 512))
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "d.img")); err != nil {
		t.Fatal(err)
	}
	_, err := Open(context.Background(), dir, Options{})
	wantCode(t, err, CodeFileMissing)
	if err := os.Remove(filepath.Join(dir, "d.img")); err != nil {
		t.Fatal(err)
	}
	write("d.img", strings.Repeat("x", 512))
	p, err := Open(context.Background(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	write("d.img", strings.Repeat("y", 1024))
	_, err = p.OpenDisk(context.Background(), 0)
	wantCode(t, err, CodeFileChanged)
}

// A bare disk image is a machine with one disk.
func TestBareImage(t *testing.T) {
	dir := t.TempDir()
	raw, image := filepath.Join(dir, "raw"), filepath.Join(dir, "My Server.qcow2")
	if err := os.WriteFile(raw, bytes.Repeat([]byte("0123456789abcdef"), 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "qemu-img", "convert", "-O", "qcow2", "-c", raw, image)
	p, err := Open(context.Background(), image, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	g, list, _ := p.Graph()
	if len(g.Nodes) != 1 || g.Nodes[0].ID != "my-server" || g.Nodes[0].Name != "My Server" || list[0].Name() != "my-server/disk" || list[0].Size != 1<<20 {
		t.Fatalf("%+v %+v", g, list)
	}
	d, err := p.OpenDisk(context.Background(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if sourceDigest(t, d) != fileDigest(t, raw) {
		t.Error("the disk reads differently")
	}
	_, err = Open(context.Background(), filepath.Join(dir, "nothing"), Options{})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// A package whose manifest was changed after it was signed is refused, and so is one signed by a stranger.
func TestSignatures(t *testing.T) {
	g := sample()
	sources, _ := rawFiles(t, g)
	for kind, key := range keys(t) {
		dir := filepath.Join(t.TempDir(), "shop")
		if err := Write(context.Background(), dir, g, sources, WriteOptions{Signer: key, Chain: signerOf(t, key)}); err != nil {
			t.Fatal(err)
		}
		stranger := Options{Now: time.Unix(1_800_000_000, 0)}
		stranger.Roots = certPoolOf(t)
		_, err := Open(context.Background(), dir, stranger)
		wantCode(t, err, CodeSignerUntrusted)
		mf := filepath.Join(dir, "shop.mf")
		data, err := os.ReadFile(mf)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(mf, append(data, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err = Open(context.Background(), dir, Options{})
		if wantCode(t, err, CodeSignature); t.Failed() {
			t.Fatalf("with %s", kind)
		}
	}
}

func FuzzDescriptor(f *testing.F) {
	f.Add([]byte(envelopeWith("", "", "")))
	f.Add([]byte(oneDisk("d.img", `ovf:size="512"`, 512)))
	f.Add([]byte(manyProperties(3)))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := readDescriptor(data)
		if err != nil {
			return
		}
		c, err := convert(d, false)
		if err != nil {
			return
		}
		if wrong := c.graph.Validate(); len(wrong) > 0 {
			t.Errorf("the graph is wrong: %v", wrong)
		}
		for _, d := range c.disks {
			if n, ok := c.graph.Node(d.Node); !ok || n.ID != d.Node {
				t.Errorf("disk %s has no node", d.Name())
			}
		}
	})
}

func FuzzArchive(f *testing.F) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	text := oneDisk("d.img", "", 512)
	for name, content := range map[string]string{"a.ovf": text, "d.img": strings.Repeat("x", 512)} {
		if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			f.Fatal(err)
		}
	}
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		name := filepath.Join(t.TempDir(), "a.ova")
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := Open(context.Background(), name, Options{})
		if err != nil {
			return
		}
		defer p.Close()
		_, list, _ := p.Graph()
		for i := range list {
			if d, err := p.OpenDisk(context.Background(), i); err == nil {
				d.Close()
			}
		}
	})
}
