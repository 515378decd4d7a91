// Package contexts keeps where servers are and the credentials to reach them: a
// context is one file, readable by its owner alone, and the person's list of
// contexts names such files.
package contexts

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/tombolo-vdc/tombolo/events"
)

// Context is one server as one user reaches it. It holds secrets.
type Context struct {
	Name    string           `json:"name"`
	HTTP    string           `json:"http"`              // base URL
	NATS    string           `json:"nats,omitempty"`    // URL
	Account events.AccountID `json:"account"`           // that commands act in
	Home    events.AccountID `json:"home"`              // the user's own account
	User    events.UserID    `json:"user"`              //
	Token   string           `json:"token"`             // HTTP bearer token
	NKey    string           `json:"nkey,omitempty"`    // public NATS user key
	Seed    string           `json:"seed,omitempty"`    // its secret seed
	Regions []string         `json:"regions,omitempty"` // that the server was started with
	// Authority is who signs the certificates of the installation, as PEM; empty
	// where nothing is reached by TLS, or by certificates that the system knows.
	Authority string `json:"authority,omitempty"`
}

// Errors of this package.
var (
	ErrUnknown = errors.New("there is no such context")
	ErrNone    = errors.New("no context is chosen")
)

// Read reads a context from its file.
func Read(path string) (Context, error) {
	var c Context
	b, err := os.ReadFile(path)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("%s is not a context: %w", path, err)
	}
	if c.HTTP == "" || c.Token == "" {
		return c, fmt.Errorf("%s is not a context: it has no address or no token", path)
	}
	return c, nil
}

// Write stores a context for its owner alone; a reader sees the old one or the
// new one.
func (c Context) Write(path string) error {
	b, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	return WritePrivate(path, append(b, '\n'))
}

// WritePrivate replaces a file by one that its owner alone can read.
func WritePrivate(path string, content []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// Known is a person's list of contexts: names and the files they stand for.
type Known struct {
	Current string            `json:"current,omitempty"`
	Files   map[string]string `json:"files,omitempty"`

	path string
}

// Load reads the list from the file in the person's configuration directory; a
// missing file is an empty list.
func Load(configDir string) (Known, error) {
	k := Known{Files: map[string]string{}, path: filepath.Join(configDir, "tombolo", "contexts.json")}
	b, err := os.ReadFile(k.path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return k, err
	}
	if err := json.Unmarshal(b, &k); err != nil {
		return k, fmt.Errorf("%s cannot be read: %w", k.path, err)
	}
	if k.Files == nil {
		k.Files = map[string]string{}
	}
	return k, nil
}

// Save stores the list.
func (k Known) Save() error {
	b, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return err
	}
	return WritePrivate(k.path, append(b, '\n'))
}

// Find gives the context that a name or a file means; the current one for "".
func (k Known) Find(nameOrFile string) (Context, error) {
	if nameOrFile == "" {
		if k.Current == "" {
			return Context{}, ErrNone
		}
		nameOrFile = k.Current
	}
	if path, ok := k.Files[nameOrFile]; ok {
		return Read(path)
	}
	if filepath.Base(nameOrFile) == nameOrFile && filepath.Ext(nameOrFile) == "" {
		if _, err := os.Stat(nameOrFile); err != nil {
			return Context{}, fmt.Errorf("%w: %s", ErrUnknown, nameOrFile)
		}
	}
	return Read(nameOrFile)
}
