package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/testenv/report"
)

// bootFiles are what makes a machine of a tree: it boots from a file system that fills the disk (ext4 leaves its first KiB
// to a boot sector), takes its address by DHCP, and answers at port 8080 with what it is. The kernel is found by the links
// that Debian keeps to the newest one.
func bootFiles(m machine) map[string]string {
	return map[string]string{
		"etc/hostname": m.name + "\n",
		"boot/extlinux/extlinux.conf": `DEFAULT debian
PROMPT 0
TIMEOUT 0
LABEL debian
  KERNEL /vmlinuz
  INITRD /initrd.img
  APPEND root=/dev/vda rw console=tty0 console=ttyS0,115200
`,
		"etc/systemd/network/lan.network":    "[Match]\nType=ether\n[Network]\nDHCP=ipv4\nLLMNR=no\n[DHCPv4]\nUseDomains=yes\n",
		"etc/systemd/system/answer.socket":   "[Socket]\nListenStream=8080\nAccept=yes\n[Install]\nWantedBy=sockets.target\n",
		"etc/systemd/system/answer@.service": "[Service]\nExecStart=/usr/local/sbin/answer\nStandardInput=socket\nStandardError=journal\n",
		"usr/local/sbin/answer": `#!/bin/bash
# What this machine is, to whoever asks by HTTP.
while read -r line && [ "${line%$'\r'}" ]; do :; done
read -r up _ </proc/uptime
read -r db _ < <(getent ahostsv4 db)
packages=$(grep -c '^Status: install ok installed' /var/lib/dpkg/status)
body=$(printf '{"hostname":"%s","boot_id":"%s","uptime":%s,"kernel":"%s","packages":%d,"db":"%s"}' \
	"$(</proc/sys/kernel/hostname)" "$(</proc/sys/kernel/random/boot_id)" "$up" "$(uname -r)" "$packages" "$db")
printf 'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s' "${#body}" "$body"
`,
	}
}

// bootable writes them, and the boot loader into the mounted image.
func bootable(ctx context.Context, root string, m machine) error {
	for name, text := range bootFiles(m) {
		path := filepath.Join(root, name)
		mode := os.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			mode = 0o755
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode)); err != nil {
			return err
		}
	}
	// Every machine makes its own at its first boot.
	if err := os.WriteFile(filepath.Join(root, "etc/machine-id"), nil, 0o444); err != nil {
		return err
	}
	if err := run(ctx, nil, "chroot", root, "systemctl", "enable", "systemd-networkd", "systemd-resolved", "answer.socket"); err != nil {
		return err
	}
	return run(ctx, nil, "extlinux", "--install", filepath.Join(root, "boot/extlinux"))
}

// answered is what a booted machine says of itself.
type answered struct {
	Hostname string  `json:"hostname"`
	BootID   string  `json:"boot_id"`
	Uptime   float64 `json:"uptime"` // seconds
	Kernel   string  `json:"kernel"`
	Packages int     `json:"packages"`
	DB       string  `json:"db"` // the address that the name db has for it
}

// bootRegions are where each version is booted.
func bootRegions() []string { return regions()[:2] }

// bootPatience is how long three machines may take together where the processor is emulated.
const bootPatience = 10 * time.Minute

// boot has what the regions hold of a version run in two of them: every machine must answer at its region's own address,
// and find db by name. What it says goes into the table.
func (r *real) boot(ctx context.Context, t *report.Table, reference string, version int) error {
	for _, region := range bootRegions() {
		say("booting version %d in %s", version, region)
		name := fmt.Sprintf("booted-%d-%s", version, region)
		began := time.Now()
		if _, err := r.server.CLI(ctx, nil, "template", "instantiate", reference, "--region", region, "--name", name, "--wait", "--timeout", "15m"); err != nil {
			return err
		}
		made := time.Now()
		if _, err := r.server.CLI(ctx, nil, "env", "start", name, "--wait", "--timeout", "15m"); err != nil {
			return err
		}
		ids := map[string]bool{}
		for _, m := range machines() {
			at, accelerator, err := r.reached(ctx, name, m.name, answerPort)
			if err != nil {
				return err
			}
			body, err := get(ctx, at)
			var a answered
			if err == nil {
				err = json.Unmarshal(body, &a)
			}
			if err != nil {
				return fmt.Errorf("%s, version %d, in %s: %w", m.name, version, region, err)
			}
			if a.Hostname != m.name || a.DB != address("db") || ids[a.BootID] {
				return fmt.Errorf("%s, version %d, in %s says %+v", m.name, version, region, a)
			}
			ids[a.BootID] = true
			t.Add(version, region, m.name, at, made.Sub(began).Seconds(), time.Since(made).Seconds(), a.Uptime, a.Kernel, a.Packages, a.DB, accelerator)
		}
		if err := r.nginx(ctx, name); err != nil {
			return err
		}
		for _, args := range [][]string{{"env", "poweroff", name, "--wait"}, {"env", "delete", name, "--yes", "--wait"}} {
			if _, err := r.server.CLI(ctx, nil, args...); err != nil {
				return err
			}
		}
	}
	return nil
}

// address is a machine's on the network of all.
func address(name string) string {
	return fmt.Sprintf("10.10.0.%d", 10+slices.IndexFunc(machines(), func(m machine) bool { return m.name == name }))
}

// reached is where a machine is found from the outside, and what runs it.
func (r *real) reached(ctx context.Context, env, name string, port int) (at, accelerator string, err error) {
	var e struct {
		Machines []struct {
			ID, Accelerator string
			Public          []struct {
				Open []struct {
					Port int
					At   string
				}
			}
		}
	}
	if _, err := r.server.CLI(ctx, &e, "env", "show", env); err != nil {
		return "", "", err
	}
	for _, m := range e.Machines {
		for _, p := range m.Public {
			for _, o := range p.Open {
				if m.ID == name && o.Port == port && o.At != "" {
					return "http://" + o.At + "/", m.Accelerator, nil
				}
			}
		}
	}
	return "", "", fmt.Errorf("%s of %s is reached nowhere at port %d", name, env, port)
}

// answerPort is where bootFiles has a machine answer.
const answerPort = 8080

// nginx demands that the web machine serves with what it is for.
func (r *real) nginx(ctx context.Context, env string) error {
	at, _, err := r.reached(ctx, env, "web", 80)
	if err != nil {
		return err
	}
	body, err := get(ctx, at)
	if err == nil && !strings.Contains(string(body), "nginx") {
		err = fmt.Errorf("%s answers %q", at, body)
	}
	return err
}

// get asks until there is an answer.
func get(ctx context.Context, at string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, bootPatience)
	defer cancel()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		body, err := ask(client, at)
		if err == nil {
			return body, nil
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		}
	}
}

func ask(client *http.Client, at string) (body []byte, err error) {
	resp, err := client.Get(at)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", at, resp.Status)
	}
	return body, err
}
