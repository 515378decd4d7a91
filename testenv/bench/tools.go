package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/testenv/process"
)

const (
	oursVerified = "tombolo, read back"
	oursStored   = "tombolo, stored"
)

func sourceOrTarget(name string) events.RegionID { return events.RegionID(name) }

// chunker is the peer that keeps content-defined chunks: desync, or casync where there is no desync.
type chunker struct {
	name    string
	save    func(store, index, image string) []string
	serve   func(store, address string) []string
	extract func(url, index, image string) []string
	update  func(url, seedIndex, seed, index, image string) []string
}

// findChunker gives desync where it is in PATH, else casync, else nil, and says which.
func findChunker() (*chunker, string) {
	if _, err := exec.LookPath("desync"); err == nil {
		return &chunker{name: "desync",
			save: func(store, index, image string) []string {
				return []string{"desync", "make", "-s", store, index, image}
			},
			serve: func(store, address string) []string {
				return []string{"desync", "chunk-server", "-s", store, "-l", address}
			},
			extract: func(url, index, image string) []string { return []string{"desync", "extract", "-s", url, index, image} },
			update: func(url, seedIndex, seed, index, image string) []string {
				return []string{"desync", "extract", "-s", url, "--seed", seedIndex + ":" + seed, index, image}
			}}, "The peer is desync (github.com/folbricht/desync)."
	}
	if _, err := exec.LookPath("casync"); err == nil {
		return &chunker{name: "casync",
			save: func(store, index, image string) []string {
				return []string{"casync", "make", "--compression=zstd", "--store=" + store, index, image}
			},
			serve: func(store, address string) []string { return []string{os.Args[0], partFiles, store, address} },
			extract: func(url, index, image string) []string {
				return []string{"casync", "extract", "--store=" + url, index, image}
			},
			update: func(url, _, seed, index, image string) []string {
				return []string{"casync", "extract", "--store=" + url, "--seed=" + seed, index, image}
			}}, "The peer is Debian's casync with zstd, because desync is not in PATH."
	}
	return nil, "Neither desync nor casync is installed."
}

// partFiles serves a folder over HTTP, which is all that casync's store needs.
const partFiles = "@files"

func serveFiles(ctx context.Context, dir, address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	err = http.Serve(l, http.FileServer(http.Dir(dir)))
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// part runs a part of this program to its end and reads what it tells.
func (b *bench) part(ctx context.Context, netns, name string, p part, into *told) (time.Duration, *process.Process, error) {
	arg, err := json.Marshal(p)
	if err != nil {
		return 0, nil, err
	}
	out, in, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer out.Close()
	took, proc, err := process.Run(ctx, process.Command{Args: []string{b.self, name, string(arg)}, Netns: netns, Stdout: in})
	in.Close()
	if err != nil {
		return took, proc, err
	}
	return took, proc, json.NewDecoder(out).Decode(into)
}

// startPart starts a part that goes on, and waits for its first answer.
func (b *bench) startPart(netns, name string, p part) (*process.Process, told, error) {
	arg, err := json.Marshal(p)
	if err != nil {
		return nil, told{}, err
	}
	return startTelling(process.Command{Args: []string{b.self, name, string(arg)}, Netns: netns})
}

// startTelling starts what tells something when it is ready, as one line of JSON.
func startTelling(c process.Command) (*process.Process, told, error) {
	var t told
	out, in, err := os.Pipe()
	if err != nil {
		return nil, t, err
	}
	c.Stdout = in
	proc, err := process.Start(c)
	if err = errors.Join(err, in.Close()); err != nil {
		return nil, t, errors.Join(err, out.Close())
	}
	lines := bufio.NewReader(out)
	line, err := lines.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &t)
	}
	if err != nil {
		return nil, t, errors.Join(fmt.Errorf("%s: %w", filepath.Base(c.Args[0]), err), proc.End(time.Second), out.Close())
	}
	// What it tells at its end must not meet a closed pipe.
	go func() {
		_, _ = io.Copy(io.Discard, lines)
		_ = out.Close()
	}()
	return proc, t, nil
}

// allTools are those that are measured.
func (c *copying) allTools() []tool {
	tools := []tool{c.ours(oursVerified, true), c.ours(oursStored, false),
		c.rsync("rsync", ""), c.rsync("rsync zstd", "", "--compress", "--compress-choice=zstd", "--compress-level=1"),
		c.rsync("rsync 4 KiB blocks zstd", "v2", "--block-size=4096", "--compress", "--compress-choice=zstd", "--compress-level=1")}
	if c.chunker != nil {
		tools = append(tools, c.peer())
	}
	return tools
}

func (c *copying) ours(name string, verify bool) tool {
	keys := filepath.Join(c.dir, "keys")
	return tool{name: name, ours: true,
		sender: func(l *link) (*process.Process, string, error) {
			p, t, err := c.startPart(l.sender, partServe, part{Store: filepath.Join(c.dir, "ours"), Keys: keys, Listen: l.address + ":0"})
			return p, "https://" + t.Address, err
		},
		receive: func(_ *link, address, version, dir string) []string {
			return c.pullArgs(dir, keys, address, version, verify)
		},
		fresh: func(ctx context.Context, version, dir string) error {
			if version == "v1" {
				return nil
			}
			// The store of a region that holds v1: made by saving it there.
			held := filepath.Join(c.dir, "ours-v1")
			if _, err := os.Stat(held); err != nil {
				var t told
				if _, _, err := c.part(ctx, "", partSave, part{Store: held, Image: c.v1, Name: "v1"}, &t); err != nil {
					return err
				}
			}
			return copyFolder(ctx, held, filepath.Join(dir, "store"))
		},
	}
}

func (c *copying) pullArgs(dir, keys, address, version string, verify bool) []string {
	arg, err := json.Marshal(part{Store: filepath.Join(dir, "store"), Keys: keys, From: address, Digest: c.digests[version], Name: version, Verify: verify})
	if err != nil {
		panic(err) // of strings alone
	}
	return []string{c.self, partPull, string(arg)}
}

const rsyncPort = "8730"

func (c *copying) rsync(name, only string, options ...string) tool {
	disk := func(dir string) string { return filepath.Join(dir, "disk.raw") }
	return tool{name: name, only: only, result: disk,
		sender: func(l *link) (*process.Process, string, error) {
			config := filepath.Join(c.dir, "rsyncd.conf")
			text := fmt.Sprintf("use chroot = no\npid file = %s\n[images]\npath = %s\nread only = yes\nuid = %d\ngid = %d\n", config+".pid", c.dir, os.Getuid(), os.Getgid())
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				return nil, "", err
			}
			// A daemon that was killed leaves its pid file, and the next one then does not start.
			if err := os.Remove(config + ".pid"); err != nil && !os.IsNotExist(err) {
				return nil, "", err
			}
			p, err := process.Start(process.Command{Netns: l.sender, Args: []string{"rsync", "--daemon", "--no-detach", "--config=" + config, "--port=" + rsyncPort, "--address=" + l.address}})
			if err != nil {
				return nil, "", err
			}
			return p, "rsync://" + l.address + ":" + rsyncPort + "/images/", c.reachable(l, rsyncPort)
		},
		receive: func(_ *link, address, version, dir string) []string {
			args := append([]string{"rsync", "--inplace", "--no-whole-file", "--ignore-times", "--fsync"}, options...)
			if version == "v1" {
				args = append(args, "--sparse")
			}
			return append(args, address+version+".raw", disk(dir))
		},
		fresh: func(ctx context.Context, version, dir string) error {
			if version == "v1" {
				return nil
			}
			return run(ctx, "cp", "--sparse=always", c.v1, disk(dir))
		},
	}
}

const peerPort = "8731"

func (c *copying) peer() tool {
	disk := func(dir string) string { return filepath.Join(dir, "disk.raw") }
	index := func(version string) string { return filepath.Join(c.dir, version+".caibx") }
	return tool{name: c.chunker.name, result: disk,
		sender: func(l *link) (*process.Process, string, error) {
			p, err := process.Start(process.Command{Netns: l.sender, Args: c.chunker.serve(filepath.Join(c.dir, "peer"), l.address+":"+peerPort), Env: []string{"HOME=" + c.dir}})
			if err != nil {
				return nil, "", err
			}
			return p, "http://" + l.address + ":" + peerPort, c.reachable(l, peerPort)
		},
		receive: func(_ *link, address, version, dir string) []string {
			if version == "v1" {
				return c.chunker.extract(address, index("v1"), disk(dir))
			}
			return c.chunker.update(address, index("v1"), filepath.Join(dir, "v1.raw"), index("v2"), disk(dir))
		},
		fresh: func(ctx context.Context, version, dir string) error {
			if version == "v1" {
				return nil
			}
			return run(ctx, "cp", "--sparse=always", c.v1, filepath.Join(dir, "v1.raw"))
		},
	}
}

// reachable waits until somebody listens on a port of the sender.
func (c *copying) reachable(l *link, port string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return run(ctx, "ip", "netns", "exec", l.receiver, "bash", "-c",
		fmt.Sprintf("until (exec 3<>/dev/tcp/%s/%s) 2>/dev/null; do sleep 0.02; done", l.address, port))
}
