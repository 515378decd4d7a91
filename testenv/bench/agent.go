package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/packs"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/transfer"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
	"github.com/tombolo-vdc/tombolo/handlers/region/volumes"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
)

// The parts of an agent as processes of their own: this program runs itself with one of these as its first argument.
const (
	partSave  = "@save"
	partServe = "@serve"
	partPull  = "@pull"
	partClone = "@clone"
	partRaw   = "@raw"

	partSegment = "@segment"
)

// part is what a part is told, as JSON in its second argument.
type part struct {
	Store   string   `json:"store"`           // folder of a region's chunk store
	Keys    string   `json:"keys,omitempty"`  // folder of the authority
	Image   string   `json:"image,omitempty"` // raw image
	Name    string   `json:"name,omitempty"`  // of the root
	Listen  string   `json:"listen,omitempty"`
	From    string   `json:"from,omitempty"` // URL of the source
	Digest  string   `json:"digest,omitempty"`
	Verify  bool     `json:"verify,omitempty"` // read everything back before publishing, as the agent does
	Copies  int      `json:"copies,omitempty"` // how many times the image stands in the disk, different each time
	Times   int      `json:"times,omitempty"`
	Dir     string   `json:"dir,omitempty"`     // of a clone, or of the raw server
	Sockets []string `json:"sockets,omitempty"` // of a segment's machines
}

// told is what a part answers, as one JSON line on stdout.
type told struct {
	Address string    `json:"address,omitempty"`
	Digest  string    `json:"digest,omitempty"`
	Socket  int64     `json:"socket,omitempty"` // bytes counted at the socket
	Stored  int64     `json:"stored,omitempty"`
	Chunks  int       `json:"chunks,omitempty"`
	Seconds []float64 `json:"seconds,omitempty"`
	Size    int64     `json:"size,omitempty"`
}

const (
	sourceRegion = "sydney"
	targetRegion = "chicago"
	owner        = "bench"
)

func runPart(ctx context.Context, name, arg string) error {
	var p part
	if err := json.Unmarshal([]byte(arg), &p); err != nil {
		return err
	}
	run, ok := map[string]func(context.Context, part) (told, error){partSave: save, partServe: serve, partPull: pull, partClone: clone, partRaw: rawServer, partSegment: serveSegment}[name]
	if !ok {
		return fmt.Errorf("%s is no part of this program", name)
	}
	out, err := run(ctx, p)
	if err != nil {
		return err
	}
	return tell(out)
}

func tell(t told) error { return json.NewEncoder(os.Stdout).Encode(t) }

// save takes a raw image in and publishes it: what an agent does with an upload, without the upload.
func save(ctx context.Context, p part) (_ told, err error) {
	store, err := packs.Open(p.Store, packs.Options{})
	if err != nil {
		return told{}, err
	}
	defer func() { err = closed(err, store) }()
	f, err := os.Open(p.Image)
	if err != nil {
		return told{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return told{}, err
	}
	request := chunks.IngestRequest{Source: f, Size: info.Size()}
	if p.Copies > 1 {
		request = chunks.IngestRequest{Source: copies{f, info.Size()}, Size: info.Size() * int64(p.Copies)}
	}
	session, err := begin(ctx, store)
	if err != nil {
		return told{}, err
	}
	defer session.Close()
	r, err := chunks.Ingest(ctx, session, request)
	if err != nil {
		return told{}, err
	}
	return told{Digest: string(r.Digest), Stored: r.StoredBytes, Chunks: r.NewChunks, Size: request.Size}, publish(ctx, store, p.Name, r.Digest)
}

func begin(ctx context.Context, store chunks.Store) (chunks.Session, error) {
	if err := store.Hold(ctx, owner, time.Now().Add(time.Hour)); err != nil {
		return nil, err
	}
	return store.Begin(ctx, owner)
}

func publish(ctx context.Context, store chunks.Store, name string, d chunks.Digest) error {
	if err := store.Publish(ctx, chunks.Root{Name: name, Owner: owner, Indexes: []chunks.Digest{d}}); err != nil {
		return err
	}
	_, err := store.Release(ctx, owner)
	return err
}

// copies reads as an image many times over. Each block that holds something carries the number of its copy, so that no
// two copies share a chunk; a larger real disk has more content, not the same again.
type copies struct {
	image *os.File
	size  int64
}

func (c copies) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		at := (off + int64(n)) % c.size
		part := p[n:min(len(p), n+int(c.size-at))]
		if _, err := io.ReadFull(io.NewSectionReader(c.image, at, int64(len(part))), part); err != nil {
			return n, err
		}
		number := byte((off + int64(n)) / c.size)
		for i := 0; i < len(part); i += chunks.BlockSize {
			block := part[i:min(i+chunks.BlockSize, len(part))]
			if !chunks.Identify(block).IsZero() {
				block[0] ^= number
			}
		}
		n += len(part)
	}
	return n, nil
}

func regionTLS(keys string, name string) (*tls.Config, error) {
	authority, err := trust.OpenAuthority(keys)
	if err != nil {
		return nil, err
	}
	certificate, err := authority.Region(keys, events.RegionID(name))
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{certificate}, RootCAs: authority.Pool(), MinVersion: tls.VersionTLS13}, nil
}

// serve hands out a store's chunks until it is interrupted, and tells then what it sent.
func serve(ctx context.Context, p part) (_ told, err error) {
	store, err := packs.Open(p.Store, packs.Options{})
	if err != nil {
		return told{}, err
	}
	defer func() { err = closed(err, store) }()
	config, err := regionTLS(p.Keys, sourceRegion)
	if err != nil {
		return told{}, err
	}
	links := transfer.NewLinks(sourceRegion)
	server, err := transfer.NewServer(transfer.ServerOptions{Region: sourceRegion, Store: store, TLS: config, Links: links})
	if err != nil {
		return told{}, err
	}
	l, err := net.Listen("tcp", p.Listen)
	if err != nil {
		return told{}, err
	}
	if err := tell(told{Address: l.Addr().String()}); err != nil {
		return told{}, err
	}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	err = server.Serve(l)
	return told{Socket: links.Bytes(transfer.Link{From: sourceRegion, To: targetRegion}) + links.Bytes(transfer.Link{From: targetRegion, To: sourceRegion})}, err
}

// pull copies a disk from a source and publishes it.
func pull(ctx context.Context, p part) (_ told, err error) {
	store, err := packs.Open(p.Store, packs.Options{})
	if err != nil {
		return told{}, err
	}
	defer func() { err = closed(err, store) }()
	config, err := regionTLS(p.Keys, targetRegion)
	if err != nil {
		return told{}, err
	}
	links := transfer.NewLinks(targetRegion)
	puller, err := transfer.NewPuller(transfer.Options{Region: targetRegion, Store: store, TLS: config, Links: links, Scratch: p.Store})
	if err != nil {
		return told{}, err
	}
	if err := store.Hold(ctx, owner, time.Now().Add(time.Hour)); err != nil {
		return told{}, err
	}
	d := chunks.Digest(p.Digest)
	r, err := puller.Pull(ctx, transfer.PullRequest{Owner: owner, Indexes: []chunks.Digest{d}, Sources: []transfer.Source{{Region: sourceRegion, URL: p.From}}})
	if err != nil {
		return told{}, err
	}
	if p.Verify {
		v, err := chunks.Verify(ctx, store, d, nil)
		if err == nil {
			err = v.Err()
		}
		if err != nil {
			return told{}, err
		}
	}
	out := told{Stored: r.StoredBytes, Chunks: r.Fetched}
	for _, c := range links.Counts() {
		out.Socket += c.Bytes
	}
	return out, publish(ctx, store, p.Name, d)
}

// clone opens clones of a stored disk, one after the other, as an agent that runs does, and tells how long each took
// until a random 4 KiB were read and others written and flushed through NBD. The packs are out of the system's cache
// each time.
func clone(ctx context.Context, p part) (_ told, err error) {
	store, err := packs.Open(p.Store, packs.Options{})
	if err != nil {
		return told{}, err
	}
	defer func() { err = closed(err, store) }()
	var out told
	// An agent keeps the indexes of the instances that it holds in memory, from when it started or published them.
	cache, err := chunks.NewCache(store, 0)
	if err != nil {
		return told{}, err
	}
	defer func() { err = closed(err, cache) }()
	ready, err := cache.Open(ctx, chunks.Digest(p.Digest))
	if err != nil {
		return told{}, err
	}
	defer func() { err = closed(err, ready) }()
	for i := range p.Times {
		if err := evict(p.Store); err != nil {
			return out, err
		}
		seconds, err := cloneOnce(ctx, cache, chunks.Digest(p.Digest), p.Size(), filepath.Join(p.Dir, fmt.Sprint(i)))
		if err != nil {
			return out, err
		}
		out.Seconds = append(out.Seconds, seconds)
	}
	return out, nil
}

// Size is the length of the disk, which is told in place of the name.
func (p part) Size() (n int64) {
	if _, err := fmt.Sscan(p.Name, &n); err != nil {
		return 0
	}
	return n
}

func cloneOnce(ctx context.Context, cache *chunks.Cache, d chunks.Digest, size int64, dir string) (_ float64, err error) {
	server := nbd.NewServer()
	defer func() { err = closed(err, server) }()
	socket, err := nbd.SocketPath(filepath.Dir(dir), "clone")
	if err != nil {
		return 0, err
	}
	l, err := nbd.Listen(socket)
	if err != nil {
		return 0, err
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	began := time.Now()
	if err := volumes.Create(dir, d, size); err != nil {
		return 0, err
	}
	v, err := volumes.Open(ctx, dir, cache)
	if err != nil {
		return 0, err
	}
	defer func() { err = closed(err, v) }()
	if err := server.Add(nbd.Export{Name: "disk", Device: v}); err != nil {
		return 0, err
	}
	defer server.Remove("disk")
	client, err := nbd.Dial(ctx, socket, "disk")
	if err != nil {
		return 0, err
	}
	defer func() { err = closed(err, client) }()
	block := make([]byte, 4096)
	at := func() int64 { return rand.Int64N(size/4096) * 4096 }
	if _, err := client.ReadAt(block, at()); err != nil {
		return 0, err
	}
	if _, err := client.WriteAt(block, at()); err != nil {
		return 0, err
	}
	if err := client.Flush(); err != nil {
		return 0, err
	}
	return time.Since(began).Seconds(), nil
}

// evict asks the system to forget what it has cached of a folder's files.
func evict(dir string) error {
	return filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	})
}

// closed closes c and gives the first of the two errors.
func closed(err error, c io.Closer) error {
	if cerr := c.Close(); err == nil {
		err = cerr
	}
	return err
}
