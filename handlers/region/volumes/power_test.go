package volumes

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
)

var errPower = errors.New("the power is gone")

const sector = 512

// powerFS is a disk in memory that loses power, or the process that uses it, before its nth change. After a power cut it
// holds what was synced, and of the rest any sectors and any first part of the changes of names.
type powerFS struct {
	mu      sync.Mutex
	rnd     *rand.Rand
	left    int // changes until the end; negative: no end
	life    int // handles of an earlier one are dead
	bootID  bootID
	names   map[string]*inode
	durable map[string]*inode
	moves   []func(map[string]*inode)
	locks   map[string]int
	synced  func() // called once, when bytes of a layer were synced and nothing tells of it yet
}

type inode struct {
	now, durable []byte
	pending      []func([]byte) []byte // by sector
}

func newPowerFS(seed uint64) *powerFS {
	return &powerFS{left: -1, rnd: rand.New(rand.NewPCG(seed, 7)), names: map[string]*inode{}, durable: map[string]*inode{}, locks: map[string]int{}}
}

// kill ends the process: nothing that was written is lost.
func (p *powerFS) kill() {
	p.life++
	p.left, p.synced = -1, nil
	clear(p.locks)
}

// cut ends the power.
func (p *powerFS) cut() {
	p.kill()
	p.bootID[0]++
	for _, m := range p.moves[:p.rnd.IntN(len(p.moves)+1)] {
		m(p.durable)
	}
	p.moves = nil
	p.names = maps.Clone(p.durable)
	chance := p.rnd.IntN(3) // nothing of the rest, half of it, all of it
	for _, f := range p.names {
		for _, change := range f.pending {
			if p.rnd.IntN(2) < chance {
				f.durable = change(f.durable)
			}
		}
		f.pending = nil
		f.now = slices.Clone(f.durable)
	}
}

func (p *powerFS) change(do func()) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left == 0 {
		return errPower
	}
	p.left--
	do()
	return nil
}

func (p *powerFS) move(m func(map[string]*inode)) error {
	return p.change(func() { m(p.names); p.moves = append(p.moves, m) })
}

func (p *powerFS) mkdir(string) error { return nil }

func (p *powerFS) create(name string) (file, error) {
	f := &inode{}
	err := p.move(func(names map[string]*inode) { names[name] = f })
	return &powerFile{p, f, p.life, name}, err
}

func (p *powerFS) open(name string) (file, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f, ok := p.names[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return &powerFile{p, f, p.life, name}, nil
}

func (p *powerFS) rename(from, to string) error {
	return p.move(func(names map[string]*inode) {
		if f, ok := names[from]; ok {
			names[to] = f
			delete(names, from)
		}
	})
}

func (p *powerFS) remove(name string) error {
	return p.move(func(names map[string]*inode) { delete(names, name) })
}

func (p *powerFS) list(string) (names []string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name := range p.names {
		names = append(names, filepath.Base(name))
	}
	return names, nil
}

func (p *powerFS) syncDir(string) error {
	return p.change(func() { p.moves, p.durable = nil, maps.Clone(p.names) })
}

func (p *powerFS) boot() (bootID, error) { return p.bootID, nil }

func (p *powerFS) lock(name string) (io.Closer, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.locks[name]; ok {
		return nil, errLocked
	}
	p.locks[name] = p.life
	return powerLock{p, name, p.life}, nil
}

type powerLock struct {
	*powerFS
	name string
	life int
}

func (l powerLock) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.locks[l.name] == l.life {
		delete(l.locks, l.name)
	}
	return nil
}

type powerFile struct {
	*powerFS
	f    *inode
	life int
	name string
}

func (f *powerFile) change(do func()) error {
	return f.powerFS.change(func() {
		if f.life == f.powerFS.life {
			do()
		}
	})
}

func (f *powerFile) ReadAt(b []byte, off int64) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return bytes.NewReader(f.f.now).ReadAt(b, off)
}

func (f *powerFile) WriteAt(b []byte, off int64) (int, error) {
	err := f.change(func() { f.put(slices.Clone(b), off) })
	if err != nil {
		return 0, err
	}
	return len(b), nil
}

// put writes sector by sector, each of which may be lost on its own.
func (f *powerFile) put(b []byte, off int64) {
	for len(b) > 0 {
		part, at := b[:min(int64(len(b)), sector-off%sector)], off
		do := func(old []byte) []byte {
			if end := at + int64(len(part)); end > int64(len(old)) {
				old = append(old, make([]byte, end-int64(len(old)))...)
			}
			copy(old[at:], part)
			return old
		}
		f.f.now = do(f.f.now)
		f.f.pending = append(f.f.pending, do)
		b, off = b[len(part):], off+int64(len(part))
	}
}

func (f *powerFile) Punch(off, n int64) error {
	return f.change(func() {
		if n = min(n, int64(len(f.f.now))-off); n > 0 {
			f.put(make([]byte, n), off)
		}
	})
}

func (f *powerFile) Truncate(size int64) error {
	return f.change(func() {
		do := func(old []byte) []byte { return old[:min(size, int64(len(old)))] }
		f.f.now = do(f.f.now)
		f.f.pending = append(f.f.pending, do)
	})
}

func (f *powerFile) Sync() error {
	err := f.change(func() { f.f.durable, f.f.pending = slices.Clone(f.f.now), nil })
	if synced := f.synced; synced != nil && filepath.Ext(f.name) == ".data" {
		f.synced = nil
		synced()
	}
	return err
}

func (f *powerFile) Size() (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return int64(len(f.f.now)), nil
}

func (f *powerFile) Close() error { return nil }
