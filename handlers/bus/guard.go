package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	createSubject = "$JS.API.CONSUMER.CREATE." + journalStream + ".>"
	// readerLife bounds how long a reader of the journal that has gone is kept.
	readerLife = 5 * time.Minute
	apiWait    = 5 * time.Second
)

// guard stands before JetStream's CONSUMER.CREATE of the journal. Whoever may
// create any consumer could have stored events delivered to any subject of Core,
// a command's for one; so only a reader's consumer passes: pulled, in memory,
// without acknowledgements, gone soon after its reader.
type guard struct {
	conn *nats.Conn
	log  *slog.Logger
}

// createRequest is JetStream's CreateConsumerRequest (nats-server,
// jetstream_api.go) with what a reader may ask.
type createRequest struct {
	Stream string       `json:"stream_name"`
	Config readerConfig `json:"config"`
	Action string       `json:"action"`
}

type readerConfig struct {
	Name              string                  `json:"name,omitempty"`
	Description       string                  `json:"description,omitempty"`
	DeliverPolicy     jetstream.DeliverPolicy `json:"deliver_policy"`
	OptStartSeq       uint64                  `json:"opt_start_seq,omitempty"`
	OptStartTime      *time.Time              `json:"opt_start_time,omitempty"`
	FilterSubject     string                  `json:"filter_subject,omitempty"`
	AckPolicy         jetstream.AckPolicy     `json:"ack_policy"`
	MaxDeliver        int                     `json:"max_deliver,omitempty"`
	ReplayPolicy      jetstream.ReplayPolicy  `json:"replay_policy"`
	InactiveThreshold time.Duration           `json:"inactive_threshold,omitempty"`
	Replicas          int                     `json:"num_replicas"`
	MemoryStorage     bool                    `json:"mem_storage,omitempty"`
	Metadata          map[string]string       `json:"metadata,omitempty"`
}

// guardJournal starts a guard on a connection to Core; it ends with the connection.
func guardJournal(conn *nats.Conn, log *slog.Logger) error {
	g := &guard{conn, log}
	if _, err := conn.Subscribe(guardPrefix+createSubject, func(m *nats.Msg) { go g.create(m) }); err != nil {
		return err
	}
	return conn.Flush()
}

func (g *guard) create(m *nats.Msg) {
	answer, err := g.ask(strings.TrimPrefix(m.Subject, guardPrefix), m.Data)
	if err != nil {
		g.log.Warn("a consumer of the journal is refused", "subject", m.Subject, "why", err)
		answer, err = json.Marshal(struct {
			Type  string             `json:"type"`
			Error jetstream.APIError `json:"error"`
		}{"io.nats.jetstream.api.v1.consumer_create_response", jetstream.APIError{Code: 403, ErrorCode: jetstream.JSErrCodeBadRequest, Description: err.Error()}})
		if err != nil {
			return // strings and numbers only: it does not happen
		}
	}
	if err := m.Respond(answer); err != nil {
		g.log.Warn("an answer could not be sent", "error", err)
	}
}

func (g *guard) ask(subject string, body []byte) ([]byte, error) {
	var r createRequest
	decoder := json.NewDecoder(strings.NewReader(string(body)))
	decoder.DisallowUnknownFields() // durable_name, deliver_subject and what is yet to be invented
	if err := decoder.Decode(&r); err != nil {
		return nil, fmt.Errorf("only what a reader needs can be asked: %w", err)
	}
	c := r.Config
	if c.AckPolicy != jetstream.AckNonePolicy || !c.MemoryStorage || c.InactiveThreshold <= 0 || c.InactiveThreshold > readerLife {
		return nil, errors.New("a reader's consumer is in memory, takes no acknowledgements, and ends when unused for at most " + readerLife.String())
	}
	r.Action = "create" // never another's that exists
	clean, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), apiWait)
	defer cancel()
	answer, err := g.conn.RequestWithContext(ctx, subject, clean)
	if err != nil {
		return nil, errors.New("JetStream does not answer")
	}
	return answer.Data, nil
}
