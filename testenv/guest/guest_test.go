package guest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/fault"
	"github.com/tombolo-vdc/tombolo/testenv/guest"
)

// machine is a guest in QEMU, on QEMU's own user-mode network.
type machine struct {
	url    string
	began  time.Time
	serial net.Conn
	screen *output
	qmp    net.Conn
	ended  chan error
}

// output is what the guest wrote to its serial port.
type output struct {
	sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.Lock()
	defer o.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.Lock()
	defer o.Unlock()
	return o.text.String()
}

// boot starts a machine with nothing but its disk and a network card.
func boot(t *testing.T, disk, memory string) *machine {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := free.Addr().String()
	free.Close()
	dir := t.TempDir()
	serial, qmp := filepath.Join(dir, "serial"), filepath.Join(dir, "qmp")
	m := &machine{url: "http://" + at, began: time.Now(), screen: &output{}, ended: make(chan error, 1)}
	var said bytes.Buffer
	ctx, kill := context.WithCancel(context.Background())
	c := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-m", memory, "-nodefaults", "-vga", "std", "-display", "none",
		"-serial", "unix:"+serial+",server=on,wait=on", "-qmp", "unix:"+qmp+",server=on,wait=off",
		"-drive", "file="+disk+",if=none,id=disk,format=raw", "-device", "virtio-blk-pci,drive=disk",
		"-netdev", "user,id=net,hostname=web,hostfwd=tcp:"+at+"-:80", "-device", "virtio-net-pci,netdev=net,mac=52:54:00:00:00:07")
	c.Stderr = &said
	if err := c.Start(); err != nil {
		kill()
		t.Fatalf("%v\ncure: apt-get install qemu-system-x86", err)
	}
	go func() { m.ended <- c.Wait() }()
	t.Cleanup(func() {
		kill()
		if t.Failed() {
			t.Logf("QEMU: %s\nserial port: %s", said.String(), m.screen)
		}
	})
	m.serial = dial(t, serial)
	go io.Copy(m.screen, m.serial)
	m.qmp = dial(t, qmp)
	return m
}

// patience is how long a guest that runs may take to answer.
const patience = 10 * time.Second

func dial(t *testing.T, socket string) net.Conn {
	t.Helper()
	var c net.Conn
	wait(t, "QEMU", func() error {
		var err error
		c, err = net.Dial("unix", socket)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// wait asks until there is no error.
func wait(t *testing.T, what string, ask func() error) {
	t.Helper()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for end := time.Now().Add(time.Minute); ; <-again.C {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func (m *machine) get(path string, within time.Duration) (string, error) {
	client := http.Client{Timeout: within, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get(m.url + path)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = errors.New(r.Status)
	}
	return string(body), err
}

func (m *machine) must(t *testing.T, path string) string {
	t.Helper()
	body, err := m.get(path, patience)
	if err != nil {
		t.Fatalf("GET %s: %v: %s", path, err, body)
	}
	return body
}

func (m *machine) answer(t *testing.T) guest.Answer {
	t.Helper()
	var a guest.Answer
	wait(t, "the guest's answer", func() error {
		// QEMU's network takes the connection before the guest is there, and tries at intervals that grow.
		body, err := m.get("/", patience/20)
		if err != nil {
			return err
		}
		d := json.NewDecoder(strings.NewReader(body))
		d.DisallowUnknownFields()
		a = guest.Answer{}
		if err := d.Decode(&a); err != nil {
			return fmt.Errorf("%w in %s", err, body)
		}
		if a.Counter.Value == 0 {
			return errors.New("it does not count yet")
		}
		return nil
	})
	return a
}

// button presses the power button and waits until the guest has switched itself off.
func (m *machine) button(t *testing.T) {
	t.Helper()
	pressed := time.Now()
	if _, err := io.WriteString(m.qmp, `{"execute":"qmp_capabilities"} {"execute":"system_powerdown"}`); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-m.ended:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the guest takes no notice of its power button")
	}
	t.Logf("power button to the end of QEMU: %.2f s", time.Since(pressed).Seconds())
}

func build(t *testing.T, o guest.Options) guest.Image {
	t.Helper()
	began := time.Now()
	image, err := guest.Build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("Linux %s, %d MiB, built in %.2f s", image.Kernel, image.Size>>20, time.Since(began).Seconds())
	return image
}

func TestGuest(t *testing.T) {
	image := build(t, guest.Options{})
	if again := build(t, guest.Options{}); again != image {
		t.Fatalf("built again it is %v, not %v", again, image)
	}
	disk := filepath.Join(t.TempDir(), "disk.raw")
	if err := image.CopyTo(disk); err != nil {
		t.Fatal(err)
	}

	m := boot(t, disk, "128M")
	first := m.answer(t)
	t.Logf("the first answer after %.2f s, %.2f s of them the kernel's: %+v", time.Since(m.began).Seconds(), first.Uptime, first)
	if first.Hostname != "web" || len(first.Interfaces) != 1 || first.Interfaces[0].MAC != "52:54:00:00:00:07" ||
		len(first.Interfaces[0].Addresses) != 1 || first.Interfaces[0].Addresses[0] != "10.0.2.15/24" {
		t.Errorf("name and address are not those that DHCP gave: %+v", first)
	}
	if first.BootID == "" || first.Counter.PID == 0 || first.Counter.Started <= 0 || !first.Counter.Open {
		t.Errorf("%+v", first)
	}
	wait(t, "the counter", func() error {
		if a := m.answer(t); a.Counter.Value <= first.Counter.Value {
			return fmt.Errorf("%+v", a)
		}
		return nil
	})
	text := `two words & "100 %"`
	m.must(t, "/write?text="+url.QueryEscape(text))
	if got := m.must(t, "/peer?url="+url.QueryEscape("http://10.0.2.15/read")); strings.TrimSpace(got) != text {
		t.Errorf("wrote %q and read %q through itself", text, got)
	}
	m.must(t, "/ping?host=10.0.2.2")
	for _, path := range []string{"/peer?url=http://10.0.2.15:81/", "/ping?host=no.such.invalid", "/no-such"} {
		if body, err := m.get(path, patience); err == nil {
			t.Errorf("GET %s: %s", path, body)
		}
	}
	if got := m.must(t, "/bytes?n=100000"); len(got) != 100000 {
		t.Errorf("%d bytes of 100000", len(got))
	}
	io.WriteString(m.serial, "echo $((6 * 7)) from $(hostname)\n")
	wait(t, "the shell on the serial port", func() error {
		if strings.Contains(m.screen.String(), "42 from web") {
			return nil
		}
		return errors.New("no answer")
	})
	m.button(t)

	m = boot(t, disk, "96M")
	second := m.answer(t)
	if second.BootID == first.BootID || second.Counter.Value <= first.Counter.Value {
		t.Errorf("after a boot: %+v, before it: %+v", second, first)
	}
	if got := strings.TrimSpace(m.must(t, "/read")); got != text {
		t.Errorf("wrote %q and read %q after a boot", text, got)
	}
	m.button(t)
}

func TestDataPartition(t *testing.T) {
	if _, err := guest.Build(t.Context(), guest.Options{Data: 12345678}); fault.CodeOf[guest.Code](err) != guest.CodeBuild {
		t.Errorf("a partition of odd size: %v", err)
	}
	small, large := build(t, guest.Options{}), build(t, guest.Options{Data: 1 << 30})
	if large.Size-small.Size != 1<<30-32<<20 {
		t.Errorf("with 1 GiB of data %d bytes, with 32 MiB %d", large.Size, small.Size)
	}
}

// TestFromNothing builds as a machine does that has no cache, and package lists only if apt brings them.
func TestFromNothing(t *testing.T) {
	lists := t.TempDir()
	if err := os.Mkdir(filepath.Join(lists, "partial"), 0o755); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "apt.conf")
	if err := os.WriteFile(config, []byte(`Dir::State::lists "`+lists+`";`), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("APT_CONFIG", config)
	build(t, guest.Options{Cache: t.TempDir()})
}
