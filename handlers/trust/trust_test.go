package trust

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/fault"
)

func authorityIn(t *testing.T, dir string) *Authority {
	t.Helper()
	a, err := OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// lasting puts a certificate with so much life before it into dir.
func (a *Authority) lasting(t *testing.T, dir string, region events.RegionID, life time.Duration) {
	t.Helper()
	pair, err := a.Region(dir, region)
	if err != nil {
		t.Fatal(err)
	}
	template := *pair.Leaf
	der, err := sign(&template, a.certificate, pair.Leaf.PublicKey.(*ecdsa.PublicKey), a.key, life)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "region-"+string(region)+".pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func region(t *testing.T, a *Authority, dir string, id events.RegionID) tls.Certificate {
	t.Helper()
	pair, err := a.Region(dir, id)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// TestKeptCertificates: a kept certificate is used again as long as others would
// believe it for long, and signed anew otherwise.
func TestKeptCertificates(t *testing.T) {
	dir := t.TempDir()
	a := authorityIn(t, dir)
	first := region(t, a, dir, "sydney")
	if again := region(t, authorityIn(t, dir), dir, "sydney"); !bytes.Equal(first.Certificate[0], again.Certificate[0]) {
		t.Error("a good certificate was not used again")
	}
	for name, spoil := range map[string]func(){
		"about to end": func() { a.lasting(t, dir, "sydney", EndsSoon) },
		"over":         func() { a.lasting(t, dir, "sydney", -time.Hour/2) },
		"of another region": func() {
			region(t, a, dir, "chicago")
			for _, ext := range []string{".pem", ".key"} {
				if err := os.Rename(filepath.Join(dir, "region-chicago"+ext), filepath.Join(dir, "region-sydney"+ext)); err != nil {
					t.Fatal(err)
				}
			}
		},
		"of an authority that was": func() {
			region(t, a, dir, "sydney")
			for _, f := range []string{"authority.pem", "authority.key"} {
				if err := os.Remove(filepath.Join(dir, f)); err != nil {
					t.Fatal(err)
				}
			}
			a = authorityIn(t, dir)
		},
	} {
		spoil()
		pair := region(t, a, dir, "sydney")
		if err := CheckRegion(pair, a.Pool(), "sydney", time.Now()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if left := time.Until(pair.Leaf.NotAfter); left < regionLife/2 {
			t.Errorf("%s: %s are left", name, left)
		}
	}
}

// TestCheckRegion: what others would not believe is told before anybody is asked.
func TestCheckRegion(t *testing.T) {
	dir := t.TempDir()
	a, other := authorityIn(t, dir), authorityIn(t, t.TempDir())
	pair := region(t, a, dir, "sydney")
	now := time.Now()
	for _, c := range []struct {
		name      string
		authority *Authority
		region    events.RegionID
		at        time.Time
		code      Code
	}{
		{"good", a, "sydney", now, ""},
		{"another authority", other, "sydney", now, "certificate-untrusted"},
		{"another region", a, "chicago", now, "certificate-elsewhere"},
		{"over", a, "sydney", now.Add(regionLife + time.Hour), "certificate-expired"},
		{"a clock that is behind", a, "sydney", now.Add(-2 * time.Hour), "certificate-expired"},
	} {
		err := CheckRegion(pair, c.authority.Pool(), c.region, c.at)
		if c.code == "" && err != nil || c.code != "" && fault.CodeOf[Code](err) != c.code {
			t.Errorf("%s: %v, want %q", c.name, err, c.code)
		}
	}
}
