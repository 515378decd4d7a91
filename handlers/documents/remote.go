package documents

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/tombolo-vdc/tombolo/events"
)

// The subjects under which the control plane serves documents to agents. They
// are for users of the control plane's own account; tenants have no way to them.
const (
	GetSubject       = "tombolo.document.get"       // request: a digest; answer: the document
	PutSubject       = "tombolo.document.put"       // request: the document; answer: its digest
	SignatureSubject = "tombolo.document.signature" // request: a digest; answer: the signature, 64 bytes
)

// patience bounds one request that a server works on.
const patience = 10 * time.Second

// answerPatience is how long an answer is waited for; the server gives up before.
const answerPatience = patience + 5*time.Second

// errorHeader carries the code of an Error; micro's own header carries an HTTP status.
const errorHeader = "tombolo-error"

// Serve answers requests for documents from the store until the service is
// stopped. Several servers share the work.
func Serve(conn *nats.Conn, store Store, log *slog.Logger) (micro.Service, error) {
	service, err := micro.AddService(conn, micro.Config{
		Name: "tombolo-documents", Version: "1.0.0", Description: "Graphs and manifests by digest, for region agents",
	})
	if err != nil {
		return nil, fmt.Errorf("serve documents: %w", err)
	}
	for _, e := range []struct {
		name, subject string
		answer        func(ctx context.Context, request []byte) ([]byte, error)
	}{
		{"get", GetSubject, func(ctx context.Context, request []byte) ([]byte, error) {
			return store.Get(ctx, events.Digest(request))
		}},
		{"put", PutSubject, func(ctx context.Context, request []byte) ([]byte, error) {
			digest, err := store.Put(ctx, request)
			return []byte(digest), err
		}},
		{"signature", SignatureSubject, func(ctx context.Context, request []byte) ([]byte, error) {
			return store.Signature(ctx, events.Digest(request))
		}},
	} {
		handler := micro.HandlerFunc(func(r micro.Request) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			answer, err := e.answer(ctx, r.Data())
			if err != nil {
				err = refuse(r, err, log)
			} else {
				err = r.Respond(answer)
			}
			if err != nil {
				log.Warn("a request for a document was not answered", "endpoint", e.name, "error", err)
			}
		})
		if err := service.AddEndpoint(e.name, handler, micro.WithEndpointSubject(e.subject)); err != nil {
			return nil, errors.Join(fmt.Errorf("serve documents: %w", err), service.Stop())
		}
	}
	return service, nil
}

// refusal is the body of an answer that is an error.
type refusal struct {
	Code Code   `json:"code"`
	Text string `json:"text"`
}

func refuse(r micro.Request, err error, log *slog.Logger) error {
	var e *Error
	if !errors.As(err, &e) || e.Code == Failed {
		// Not the requester's business: the log has it.
		log.Error("a document could not be served", "subject", r.Subject(), "error", err)
		e = &Error{Failed, "the store of documents failed", nil}
	}
	status := map[Code]string{Unknown: "404", TooLarge: "413", Invalid: "400"}[e.Code]
	if status == "" {
		status = "500"
	}
	body, err := json.Marshal(refusal{e.Code, e.Detail})
	if err != nil {
		return err
	}
	return r.Error(status, e.Detail, body, micro.WithHeaders(micro.Headers{errorHeader: {string(e.Code)}}))
}

// Requester asks over the bus: a *bus.Conn, or a *nats.Conn.
type Requester interface {
	RequestMsgWithContext(ctx context.Context, m *nats.Msg) (*nats.Msg, error)
}

// Remote is the Store at the other end of the bus. It checks what it gets, the
// signature as well.
type Remote struct {
	conn   Requester
	signer ed25519.PublicKey
}

var _ Store = (*Remote)(nil)

// NewRemote makes a store over a connection, which is the caller's to close, for
// documents that the control plane with this key has signed.
func NewRemote(conn Requester, signer ed25519.PublicKey) *Remote { return &Remote{conn, signer} }

// Put sends the document to be stored.
func (r *Remote) Put(ctx context.Context, document []byte) (events.Digest, error) {
	if err := admissible(document); err != nil {
		return "", err
	}
	want := events.DigestOf(document)
	answer, err := r.ask(ctx, PutSubject, document)
	if err != nil {
		return "", err
	}
	if events.Digest(answer) != want {
		return "", &Error{Damaged, fmt.Sprintf("document %s was stored as %.80q", want, answer), nil}
	}
	return want, nil
}

// Get fetches the document and the signature beside it. Errors: as for a Store;
// Damaged also where somebody else has signed it.
func (r *Remote) Get(ctx context.Context, digest events.Digest) ([]byte, error) {
	if err := addressed(digest); err != nil {
		return nil, err
	}
	document, err := r.ask(ctx, GetSubject, []byte(digest))
	if err != nil {
		return nil, err
	}
	if document, err = checked(digest, document); err != nil {
		return nil, err
	}
	signature, err := r.Signature(ctx, digest)
	if err != nil {
		return nil, err
	}
	if err := Verify(r.signer, document, signature); err != nil {
		return nil, err
	}
	return document, nil
}

// Signature fetches the signature beside the document.
func (r *Remote) Signature(ctx context.Context, digest events.Digest) ([]byte, error) {
	if err := addressed(digest); err != nil {
		return nil, err
	}
	return r.ask(ctx, SignatureSubject, []byte(digest))
}

func (r *Remote) ask(ctx context.Context, subject string, request []byte) ([]byte, error) {
	// An answer that got lost must not be waited for without end.
	ctx, cancel := context.WithTimeout(ctx, answerPatience)
	defer cancel()
	answer, err := r.conn.RequestMsgWithContext(ctx, &nats.Msg{Subject: subject, Data: request})
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", subject, err)
	}
	if code := answer.Header.Get(errorHeader); code != "" {
		var body refusal
		if err := json.Unmarshal(answer.Data, &body); err != nil {
			return nil, &Error{Code(code), "the answer cannot be read", err}
		}
		return nil, &Error{body.Code, body.Text, nil}
	}
	return answer.Data, nil
}
