package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/api"
	"github.com/tombolo-vdc/tombolo/testenv/guest"
	"github.com/tombolo-vdc/tombolo/testenv/process"
)

// accelerator is what runs the machines of the benchmarks: the one that every host has, so that figures can be compared.
const accelerator = "tcg"

const (
	siteRegion = "beijing"
	sitePool   = "203.0.113.0"
	siteBind   = "127.93.113.0" // of loopback, where nobody else is
	siteOffset = 8000
)

// site is `tombolo up` with one region that runs machines.
type site struct {
	*process.Server
	dir  string
	envs []string // to be removed before the end: what runs at the end would be suspended
}

// openSite starts the program, as an administrator has it, in a folder where disks and environments' files are. Its pool has a
// prefix of so many bits: each environment has an address of it, and each template that is stored has one reserved.
func (b *bench) openSite(ctx context.Context, name, binary string, bits int) (*site, error) {
	dir := filepath.Join(b.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	server, err := process.Up(ctx, binary, filepath.Join(dir, "data"), "--regions", siteRegion, "--accelerator", accelerator)
	if err != nil {
		return nil, err
	}
	s := &site{Server: server, dir: dir}
	if err := s.addPool(ctx, bits); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *site) addPool(ctx context.Context, bits int) error {
	_, err := s.CLI(ctx, nil, "pool", "add", "--region", siteRegion, "--type", "public-address",
		fmt.Sprintf("%s/%d", sitePool, bits), "--bind", fmt.Sprintf("%s/%d", siteBind, bits), "--port-offset", fmt.Sprint(siteOffset))
	return err
}

// close ends it and everything that it runs.
func (s *site) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var errs []error
	for _, env := range s.envs {
		_, err := s.CLI(ctx, nil, "env", "delete", env, "--yes")
		errs = append(errs, err)
	}
	_, err := s.Down()
	return errors.Join(append(errs, err, os.RemoveAll(s.dir))...)
}

// create makes an environment of a file's text.
func (s *site) create(ctx context.Context, name, text string) error {
	file := filepath.Join(s.dir, name+".yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	_, err := s.CLI(ctx, nil, "env", "create", "-f", file, "--region", siteRegion, "--timeout", "15m")
	if err == nil {
		s.envs = append(s.envs, name)
	}
	return err
}

// forget removes an environment.
func (s *site) forget(ctx context.Context, name string) error {
	_, err := s.CLI(ctx, nil, "env", "delete", name, "--yes", "--timeout", "5m")
	if err == nil {
		s.envs = slices.DeleteFunc(s.envs, func(e string) bool { return e == name })
	}
	return err
}

// reached is where each machine of an environment is reached from the outside.
func (s *site) reached(ctx context.Context, env string) (map[string]string, error) {
	var e struct{ Machines []api.Machine }
	if _, err := s.CLI(ctx, &e, "env", "show", env); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, m := range e.Machines {
		for _, p := range m.Public {
			for _, o := range p.Open {
				out[m.ID] = "http://" + o.At
			}
		}
		if out[m.ID] == "" {
			return nil, fmt.Errorf("machine %s of %s is not reached from the outside", m.ID, env)
		}
	}
	return out, nil
}

const (
	// refusedPause is between two attempts where nobody listens.
	refusedPause = 20 * time.Millisecond
	// hangs is how long an attempt may say nothing until another is made beside it: one that came before the guest listens
	// may be answered late. More would keep the guest busy with answers that nobody waits for.
	hangs       = 250 * time.Millisecond
	attemptTime = 2 * time.Second
)

// answered is a guest's first answer, and when it came.
type answered struct {
	guest.Answer
	at time.Time
}

// firstAnswer waits until one of several addresses answers 200.
func firstAnswer(ctx context.Context, urls ...string) (answered, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	first := make(chan answered, len(urls))
	for _, url := range urls {
		go func() {
			for ctx.Err() == nil {
				over := make(chan struct{})
				go func() {
					defer close(over)
					if a, err := askGuest(ctx, url); err == nil {
						select {
						case first <- a:
						default:
						}
					}
				}()
				select {
				case <-over:
					pass(ctx, refusedPause)
				case <-time.After(hangs):
				}
			}
		}()
	}
	select {
	case a := <-first:
		return a, nil
	case <-ctx.Done():
		return answered{}, fmt.Errorf("nobody answers at %v: %w", urls, ctx.Err())
	}
}

// askGuest asks once.
func askGuest(ctx context.Context, url string) (a answered, err error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return a, err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	if err == nil {
		err = json.Unmarshal(body, &a.Answer)
	}
	a.at = time.Now()
	return a, err
}

// guestDisk writes a disk that boots the guest, of so many bytes, with random content behind what the guest uses.
func guestDisk(ctx context.Context, path string, size, content int64) error {
	image, err := guest.Build(ctx, guest.Options{})
	if err != nil {
		return err
	}
	if image.Size+content > size {
		return fmt.Errorf("the guest's image has %d bytes", image.Size)
	}
	if err := image.CopyTo(path); err != nil {
		return err
	}
	return fillDisk(path, size, image.Size, content)
}

// fillDisk makes a disk so long, with random content from a place on; the rest is sparse.
func fillDisk(path string, size, from, content int64) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = closed(err, f) }()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.CopyN(f, rand.Reader, content); err != nil {
		return err
	}
	return f.Truncate(size)
}
