package transfer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
)

// Source is a region that holds what is wanted.
type Source struct {
	Region string
	URL    string // https://host:port
}

// source is the client of one region for one transfer.
type source struct {
	Source
	client *http.Client
	socket atomic.Int64 // bytes read
}

func newSource(o Options, s Source) (*source, error) {
	u, err := url.Parse(s.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" || !regionID.MatchString(s.Region) || s.Region == o.Region {
		return nil, chunks.Errorf(SourceInvalid, "region %q at %q is not a source for region %s", s.Region, s.URL, o.Region)
	}
	out := &source{Source: s}
	config := clientConfig(o.TLS, s.Region)
	dialer := &net.Dialer{Timeout: o.Stall}
	out.client = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, Transport: &http.Transport{
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			raw, err := dialer.DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			c := o.Links.wrap(raw, stalls{read: o.Stall, write: o.Stall}, &out.socket)
			// The link is that to the region that was asked for, whoever answers.
			c.identify(s.Region)
			t := tls.Client(c, config)
			if err := t.HandshakeContext(ctx); err != nil {
				return nil, errors.Join(err, c.Close())
			}
			return t, nil
		},
		MaxIdleConnsPerHost: o.Connections,
		IdleConnTimeout:     time.Minute,
		DisableCompression:  true, // chunks are compressed already
		ReadBufferSize:      64 << 10,

		MaxResponseHeaderBytes: 16 << 10,
	}}
	return out, nil
}

func (s *source) close() { s.client.CloseIdleConnections() }

// failure gives what went wrong with a source its code.
func (s *source) failure(err error) error {
	var refused *tls.CertificateVerificationError
	var op *net.OpError
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, errStalled):
		return err
	case errors.Is(err, errStalled):
		return chunks.Wrap(TransferStalled, err, "region %s at %s", s.Region, s.URL)
	case chunks.CodeOf(err) == PeerRefused || errors.As(err, &refused) || errors.As(err, &op) && op.Op == "remote error":
		return chunks.Wrap(PeerRefused, err, "region %s at %s", s.Region, s.URL)
	case chunks.CodeOf(err) != "":
		return err
	}
	return chunks.Wrap(SourceFailed, err, "region %s at %s", s.Region, s.URL)
}

func (s *source) do(req *http.Request) (*http.Response, error) {
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, s.failure(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var p problemBody
	if err := json.NewDecoder(io.LimitReader(resp.Body, 4096)).Decode(&p); err != nil || p.Code == "" {
		return nil, chunks.Errorf(SourceFailed, "region %s at %s answered %s", s.Region, s.URL, resp.Status)
	}
	return nil, chunks.Errorf(p.Code, "region %s: %s", s.Region, p.Detail)
}

// fetchIndex writes an encoded index to w, at most limit bytes.
func (s *source) fetchIndex(ctx context.Context, d chunks.Digest, w io.Writer, limit int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/v1/indexes/"+string(d), nil)
	if err != nil {
		return err
	}
	resp, err := s.do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	n, err := io.Copy(w, io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return s.failure(err)
	}
	if n > limit {
		return chunks.Errorf(SourceBad, "region %s: disk index %s is longer than %d bytes", s.Region, d, limit)
	}
	return nil
}

// fetchChunks asks for ids and calls each for each in order, with nil where the source does not have it. The record is
// valid until each returns. It stops at each's first error, which it gives as it is.
func (s *source) fetchChunks(ctx context.Context, ids []chunks.ID, buf []byte, each func(i int, rec *chunks.Record) error) error {
	body := make([]byte, 0, len(ids)*len(chunks.ID{}))
	for i := range ids {
		body = append(body, ids[i][:]...)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/v1/chunks", bytes.NewReader(body))
	if err != nil {
		return err
	}
	resp, err := s.do(req)
	if err != nil {
		return err
	}
	// A body that is not read to its end costs the connection; that is the way to stop the sender.
	defer resp.Body.Close()
	in := bufio.NewReaderSize(resp.Body, 128<<10)
	for i, id := range ids {
		var length [4]byte
		if _, err := io.ReadFull(in, length[:]); err != nil {
			return s.failure(err)
		}
		n := binary.BigEndian.Uint32(length[:])
		if n == 0 {
			if err := each(i, nil); err != nil {
				return err
			}
			continue
		}
		if n <= chunks.RecordHeaderSize || n > chunks.MaxRecordSize {
			return chunks.Errorf(SourceBad, "region %s sent a record of %d bytes", s.Region, n)
		}
		b := buf[:n]
		if _, err := io.ReadFull(in, b); err != nil {
			return s.failure(err)
		}
		h, err := chunks.ParseRecordHeader(b)
		if err != nil || h.Size() != len(b) {
			return chunks.Wrap(SourceBad, err, "region %s sent a broken record for chunk %s", s.Region, id)
		}
		rec, err := h.Record(b[chunks.RecordHeaderSize:])
		if err != nil {
			rec = chunks.Record{} // of no use, but the stream goes on behind it
		}
		if err := each(i, &rec); err != nil {
			return err
		}
	}
	// Read to the very end, so that the connection serves the next batch.
	if _, err := in.ReadByte(); err == nil {
		return chunks.Errorf(SourceBad, "region %s sent more than was asked for", s.Region)
	} else if !errors.Is(err, io.EOF) {
		return s.failure(err)
	}
	return nil
}
