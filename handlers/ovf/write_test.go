package ovf

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	govmomi "github.com/vmware/govmomi/ovf"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/events/graph"
	"github.com/tombolo-vdc/tombolo/handlers/region/disks"
)

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// sample is a graph with everything in it that OVF has words for, and much that it has none for.
func sample() graph.Graph {
	disk := func(name string, size int64) graph.Item {
		return graph.Item{Name: name, Class: graph.ProductionData, Kind: graph.Disk, Size: size, Digest: events.Digest("sha256:" + strings.Repeat("ab", 32))}
	}
	return graph.Graph{
		Nodes: []graph.Node{
			{ID: "front", Type: graph.Network, Name: "Front <&> network"},
			{ID: "back", Type: graph.Network, Name: "Back"},
			{ID: "back-subnet", Type: graph.Subnet, Name: "10.0.0.0/24", Properties: map[string]string{"cidr": "10.0.0.0/24"}},
			{ID: "shop", Type: graph.VApp, Name: "Shop 商店"},
			{ID: "web", Type: graph.Machine, Name: "Web server", Power: graph.Running,
				Properties: map[string]string{"cpus": "2", "memory-mib": "2048", "interface-0-network": "front", "interface-1-network": "back",
					"firmware": "efi", "annotation": "two\nlines"},
				Items:     []graph.Item{disk("root", 48<<20+3*512), disk("data", 1<<20), {Name: "motd", Class: graph.ConfigurationData, Kind: graph.Setting, Value: " \"hello\" <you>\x01", Size: 16}},
				Resources: []graph.Resource{{ID: "web.public", Type: graph.PublicAddress, Value: "203.0.113.7"}}},
			{ID: "db", Type: graph.Machine, Name: "Database", Power: graph.PoweredOff, Properties: map[string]string{"cpus": "1", "memory-mib": "512", "interface-0-network": "back"},
				Items: []graph.Item{disk("root", 40<<20)}},
			{ID: "store", Type: graph.Datastore, Name: "Store", Items: []graph.Item{disk("all", 64<<10)}},
		},
		Edges: []graph.Edge{{Type: graph.Contains, From: "back", To: "back-subnet"}, {Type: graph.Contains, From: "shop", To: "web"}, {Type: graph.Contains, From: "shop", To: "db"},
			{Type: graph.Connects, From: "web", To: "front"}, {Type: graph.Connects, From: "web", To: "back"}, {Type: graph.Connects, From: "db", To: "back"},
			{Type: graph.DependsOn, From: "web", To: "db"}, {Type: graph.Services, From: "store", To: "db"}},
	}
}

// rawFiles makes a raw file of each disk, with text, noise and holes, and opens it.
func rawFiles(t testing.TB, g graph.Graph) (map[string]Source, map[string]string) {
	t.Helper()
	sources, paths := map[string]Source{}, map[string]string{}
	random := mathrand.NewChaCha8([32]byte{7})
	for _, ref := range g.Disks() {
		f, err := os.Create(filepath.Join(t.TempDir(), "disk.raw"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		noise := make([]byte, min(ref.Size/4, 3<<20))
		if _, err := random.Read(noise); err != nil {
			t.Fatal(err)
		}
		for at, data := range map[int64][]byte{0: noise, ref.Size / 2: bytes.Repeat([]byte("text that packs well\n"), int(ref.Size/200)), ref.Size - 512: noise[:512]} {
			if _, err := f.WriteAt(data, at); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Truncate(ref.Size); err != nil {
			t.Fatal(err)
		}
		image, err := disks.Open(f, ref.Size, disks.Options{Format: disks.Raw})
		if err != nil {
			t.Fatal(err)
		}
		sources[ref.Name()], paths[ref.Name()] = image, f.Name()
	}
	return sources, paths
}

// signerOf makes a certificate that signs itself.
func signerOf(t testing.TB, key crypto.Signer) []*x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Packer"}, NotBefore: time.Unix(1_700_000_000, 0), NotAfter: time.Unix(2_000_000_000, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return []*x509.Certificate{c}
}

// certPoolOf makes a pool that holds a stranger.
func certPoolOf(t testing.TB) *x509.CertPool {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(signerOf(t, key)[0])
	return pool
}

func keys(t testing.TB) map[string]crypto.Signer {
	t.Helper()
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	e, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]crypto.Signer{"rsa": r, "ecdsa": e}
}

// What is written reads back as the same graph and the same bytes, in both forms and with both kinds of key.
func TestRoundTrip(t *testing.T) {
	g := sample()
	sources, paths := rawFiles(t, g)
	want := withoutDigests(g)
	all := keys(t)
	for _, c := range []struct {
		target string
		key    string
		format disks.Format
	}{{"shop.ova", "rsa", disks.VMDK}, {"shop", "ecdsa", disks.VMDK}, {"plain.ova", "", disks.Raw}, {"plain", "rsa", ""}} {
		t.Run(c.target, func(t *testing.T) {
			target := filepath.Join(t.TempDir(), c.target)
			options := WriteOptions{Format: c.format}
			roots := x509.NewCertPool()
			if c.key != "" {
				options.Signer, options.Chain = all[c.key], signerOf(t, all[c.key])
				roots.AddCert(options.Chain[0])
			}
			if err := Write(context.Background(), target, g, sources, options); err != nil {
				t.Fatal(err)
			}
			in := Options{}
			if c.key != "" {
				in.Roots, in.Now = roots, time.Unix(1_800_000_000, 0)
			}
			p, err := Open(context.Background(), target, in)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			got, list, findings := p.Graph()
			if !reflect.DeepEqual(got, want) {
				t.Errorf("the graph is another:\n%+v\n%+v", got, want)
			}
			if len(findings) > 0 {
				t.Errorf("findings: %v", findings)
			}
			if s := p.Signer(); c.key != "" && (s == nil || !s.Trusted || s.Subject != "CN=Packer") {
				t.Errorf("signer: %+v", s)
			}
			for i, d := range list {
				content, err := p.OpenDisk(context.Background(), i)
				if err != nil {
					t.Fatal(err)
				}
				if fileDigest(t, paths[d.Name()]) != sourceDigest(t, content) {
					t.Errorf("disk %s reads differently", d.Name())
				}
				if err := content.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func fileDigest(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func sourceDigest(t *testing.T, s Source) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(s, 0, s.Size())); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// QEMU reads the disks, openssl checks digests and signature, tar lists the archive in order, and govmomi reads
// the descriptor: nothing of ours judges what we wrote.
func TestOthersReadWhatIsWritten(t *testing.T) {
	g := sample()
	sources, paths := rawFiles(t, g)
	dir := t.TempDir()
	for kind, key := range keys(t) {
		ova := filepath.Join(dir, kind+".ova")
		if err := Write(context.Background(), ova, g, sources, WriteOptions{Signer: key, Chain: signerOf(t, key)}); err != nil {
			t.Fatal(err)
		}
		unpacked := filepath.Join(dir, kind)
		if err := os.Mkdir(unpacked, 0o700); err != nil {
			t.Fatal(err)
		}
		list := strings.Fields(run(t, "tar", "-xvf", ova, "-C", unpacked))
		if want := []string{kind + ".ovf", kind + ".mf", kind + ".cert", kind + "-disk1.vmdk", kind + "-disk2.vmdk", kind + "-disk3.vmdk", kind + "-disk4.vmdk"}; !reflect.DeepEqual(list, want) {
			t.Fatalf("the archive holds %v", list)
		}
		for i, ref := range g.Disks() {
			image := filepath.Join(unpacked, list[3+i])
			run(t, "qemu-img", "check", "-f", "vmdk", image)
			run(t, "qemu-img", "compare", "-f", "raw", "-F", "vmdk", paths[ref.Name()], image)
		}
		checkManifest(t, unpacked, kind)
		checkSignature(t, unpacked, kind)
		checkDescriptor(t, filepath.Join(unpacked, kind+".ovf"))
	}
}

// checkManifest recomputes every digest with openssl.
func checkManifest(t *testing.T, dir, name string) {
	t.Helper()
	mf, err := os.ReadFile(filepath.Join(dir, name+".mf"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(mf)), "\n")
	if len(lines) != 5 {
		t.Errorf("the manifest has %d lines", len(lines))
	}
	for _, line := range lines {
		file := line[strings.Index(line, "(")+1 : strings.Index(line, ")")]
		cmd := exec.Command("openssl", "dgst", "-sha256", "-r", file)
		cmd.Dir = dir
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		if sum, _, _ := strings.Cut(string(out), " "); line != "SHA256("+file+")= "+sum {
			t.Errorf("the manifest says %q, openssl %s", line, sum)
		}
	}
}

// checkSignature has openssl take the key out of the certificate and verify the signature of the manifest.
func checkSignature(t *testing.T, dir, name string) {
	t.Helper()
	cert, err := os.ReadFile(filepath.Join(dir, name+".cert"))
	if err != nil {
		t.Fatal(err)
	}
	first, pem, _ := strings.Cut(string(cert), "\n")
	signature, ok := strings.CutPrefix(first, "SHA256("+name+".mf)= ")
	raw, err := hex.DecodeString(signature)
	if !ok || err != nil {
		t.Fatalf("first line %q: %v", first, err)
	}
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	public := file("public.pem", run(t, "openssl", "x509", "-noout", "-pubkey", "-in", file("cert.pem", pem)))
	out := run(t, "openssl", "dgst", "-sha256", "-verify", public, "-signature", file("signature", string(raw)), filepath.Join(dir, name+".mf"))
	if strings.TrimSpace(out) != "Verified OK" {
		t.Errorf("openssl says %q", out)
	}
}

// checkDescriptor reads the descriptor with govmomi, which shares no code with what wrote it.
func checkDescriptor(t *testing.T, name string) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	e, err := govmomi.Unmarshal(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	if len(e.References) != 4 || len(e.Disk.Disks) != 4 || len(e.Network.Networks) != 2 || e.Network.Networks[0].Name != "Front <&> network" {
		t.Errorf("govmomi reads %d files, %d disks, networks %+v", len(e.References), len(e.Disk.Disks), e.Network.Networks)
	}
	c := e.VirtualSystemCollection
	if c == nil || c.ID != "shop" || *c.Name != "Shop 商店" || len(c.VirtualSystem) != 2 {
		t.Fatalf("govmomi reads the collection %+v", c)
	}
	web := c.VirtualSystem[0]
	count := map[govmomi.CIMResourceType]int{}
	for _, it := range web.VirtualHardware[0].Item {
		count[*it.ResourceType]++
	}
	if count[govmomi.DiskDrive] != 2 || count[govmomi.EthernetAdapter] != 2 || count[govmomi.ParallelScsiHba] != 1 || web.ID != "web" || web.Annotation.Annotation != "two\nlines" {
		t.Errorf("govmomi reads the machine %+v with %v", web, count)
	}
	single := govmomi.Envelope{VirtualSystem: &web, Disk: e.Disk, References: e.References, Network: e.Network}
	spec, err := single.ToConfigSpec()
	if err != nil || spec.NumCPUs != 2 || spec.MemoryMB != 2048 || spec.Firmware != "efi" {
		t.Errorf("govmomi makes %d processors, %d MB, firmware %q of it (%v)", spec.NumCPUs, spec.MemoryMB, spec.Firmware, err)
	}
}

// Equal input gives equal bytes, and nothing stays behind of what could not be written.
func TestWriteIsDeterministicAndClean(t *testing.T) {
	g := sample()
	sources, _ := rawFiles(t, g)
	dir := t.TempDir()
	var digests []string
	for _, sub := range []string{"one", "two"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
		target := filepath.Join(dir, sub, "shop.ova")
		if err := Write(context.Background(), target, g, sources, WriteOptions{}); err != nil {
			t.Fatal(err)
		}
		digests = append(digests, fileDigest(t, target))
	}
	if digests[0] != digests[1] {
		t.Error("two writes differ")
	}
	var stream bytes.Buffer
	if err := Stream(context.Background(), &stream, dir, g, sources, WriteOptions{Name: "shop"}); err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(stream.Bytes()); hex.EncodeToString(sum[:]) != digests[0] {
		t.Error("the stream differs from the file")
	}
	target := filepath.Join(dir, "one", "shop.ova")
	wantCode(t, Write(context.Background(), target, g, sources, WriteOptions{}), CodeExists)
	delete(sources, "db/root")
	wantCode(t, Write(context.Background(), filepath.Join(dir, "half"), g, sources, WriteOptions{}), CodeNotExportable)
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	sources, _ = rawFiles(t, g)
	if err := Write(cancelled, filepath.Join(dir, "half"), g, sources, WriteOptions{}); err == nil {
		t.Error("a cancelled write says it is done")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

// A descriptor that was edited after the export counts as it is now.
func TestEditedDescriptor(t *testing.T) {
	g := sample()
	sources, _ := rawFiles(t, g)
	dir := filepath.Join(t.TempDir(), "shop")
	if err := Write(context.Background(), dir, g, sources, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "shop.ovf")
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	data = bytes.Replace(data, []byte("<rasd:VirtualQuantity>2048<"), []byte("<rasd:VirtualQuantity>4096<"), 1)
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(context.Background(), dir, Options{})
	wantCode(t, err, CodeDigest)
	if err := os.Remove(filepath.Join(dir, "shop.mf")); err != nil {
		t.Fatal(err)
	}
	p, err := Open(context.Background(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	got, list, findings := p.Graph()
	web, _ := got.Node("web")
	if web.Properties["memory-mib"] != "4096" || web.Properties["firmware"] != "efi" || web.Properties["interface-1-network"] != "back" || len(list) != 4 {
		t.Errorf("the machine is %+v, %d disks", web, len(list))
	}
	var codes []string
	for _, f := range findings {
		codes = append(codes, f.Code)
	}
	if !reflect.DeepEqual(codes, []string{FoundExtrasStale, FoundNoManifest}) {
		t.Errorf("findings %v", codes)
	}
	edges := map[graph.Edge]bool{}
	for _, e := range got.Edges {
		edges[e] = true
	}
	if !edges[graph.Edge{Type: graph.DependsOn, From: "web", To: "db"}] || !edges[graph.Edge{Type: graph.Contains, From: "shop", To: "db"}] {
		t.Errorf("edges %v", got.Edges)
	}
}

func TestLargeFilesInArchive(t *testing.T) {
	h := tarHeader("big.vmdk", 9<<30)
	small := tarHeader("small.vmdk", 1<<30)
	if h.Format.String() != "GNU" || small.Format.String() != "USTAR" {
		t.Errorf("%v and %v", h.Format, small.Format)
	}
}

// virt-v2v, which moves machines to KVM, finds the machine, its disks and its networks in an archive of ours.
func TestVirtV2VReadsTheArchive(t *testing.T) {
	var g graph.Graph
	for _, n := range sample().Nodes {
		if n.ID == "front" || n.ID == "back" || n.ID == "web" {
			g.Nodes = append(g.Nodes, n)
		}
	}
	sources, _ := rawFiles(t, g)
	ova := filepath.Join(t.TempDir(), "web.ova")
	if err := Write(context.Background(), ova, g, sources, WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	out := run(t, "virt-v2v", "-i", "ova", ova, "-o", "null", "--print-source")
	for _, want := range []string{"source name: Web server", "memory: 2147483648 (bytes)", "nr vCPUs: 2", "firmware: uefi", "0 [scsi]", "1 [scsi]",
		`Bridge "Front <&> network" [e1000]`, `Bridge "Back" [e1000]`} {
		if !strings.Contains(out, want) {
			t.Errorf("virt-v2v does not find %q:\n%s", want, out)
		}
	}
}
