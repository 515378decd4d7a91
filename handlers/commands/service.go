package commands

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/tombolo-vdc/tombolo/events"
)

const (
	// ServiceName is how the door is found: nats micro info tombolo.
	ServiceName = "tombolo"
	// queueGroup is shared by all control planes, so that each command reaches
	// one of them, and by all endpoints: of a verb's own subject and the wildcard
	// that catches unknown verbs, the bus picks one, and both serve alike.
	queueGroup = "tombolo"
	// patience bounds the work on one command.
	patience = 10 * time.Second
	// parallel bounds the commands that are worked on at once; nearly all of them
	// wait for the journal.
	parallel = 256
)

// Service answers commands on the bus.
type Service struct {
	door  *Door
	inbox *Inbox // may be nil
	conn  *nats.Conn
	micro micro.Service
	count map[string]*counters // by endpoint

	jobs   chan micro.Request // to workers that have nothing to do
	slots  chan struct{}      // one for each worker
	work   sync.WaitGroup     // commands that are not answered yet
	closed chan struct{}
	end    sync.Once
}

// counters are what became of the commands of one verb. The figures of micro
// itself count what each subscription got, and the time to hand it on.
type counters struct {
	requests, refused, failed, nanoseconds atomic.Int64
}

// Stats is what nats micro stats shows as data of an endpoint.
type Stats struct {
	Requests    int64 `json:"requests"`
	Refused     int64 `json:"refused"`
	Failed      int64 `json:"failed"` // unavailable or internal
	Nanoseconds int64 `json:"nanoseconds"`
}

// Serve answers commands that come over the connection, and takes in those for
// the inbox if there is one. A command is worked on beside others: who sends a
// second one without waiting for the first must not rely on their order.
func Serve(conn *nats.Conn, d *Door, inbox *Inbox) (*Service, error) {
	s := &Service{door: d, inbox: inbox, conn: conn, count: map[string]*counters{},
		jobs: make(chan micro.Request), slots: make(chan struct{}, parallel), closed: make(chan struct{})}
	var err error
	s.micro, err = micro.AddService(conn, micro.Config{
		Name: ServiceName, Version: "1.0.0", QueueGroup: queueGroup,
		Description:  "Commands: " + CommandPrefix + "<account>.<kind>.<verb>; durable: " + InboxPrefix + "…; agents: " + AgentPrefix + "<region>.…",
		StatsHandler: s.stats,
	})
	if err != nil {
		return nil, fmt.Errorf("serve commands: %w", err)
	}
	for _, e := range s.endpoints() {
		s.count[e.name] = &counters{}
		err := s.micro.AddEndpoint(e.name, micro.HandlerFunc(s.dispatch), micro.WithEndpointSubject(e.subject), micro.WithEndpointMetadata(e.metadata))
		if err != nil {
			return nil, errors.Join(fmt.Errorf("serve commands: endpoint %s: %w", e.name, err), s.micro.Stop())
		}
	}
	return s, conn.Flush()
}

type endpoint struct {
	name, subject string
	metadata      map[string]string
}

// endpoints are one for each verb, and the wildcards.
func (s *Service) endpoints() []endpoint {
	response := text(&jsonschema.Schema{OneOf: []*jsonschema.Schema{schemaOf[Answer](), schemaOf[refusal]()}})
	out := []endpoint{
		{"unknown", CommandPrefix + "*.*.*", map[string]string{"doc": "Refuses what is no command."}},
		{"agent", AgentPrefix + "*.*.*.*", map[string]string{
			"doc": "Any command from a region's agent: " + AgentPrefix + "<region>.<account>.<kind>.<verb>.", "response": response}},
	}
	if s.inbox != nil {
		out = append(out, endpoint{"inbox", InboxPrefix + "*.*.*", map[string]string{
			"doc": "Any command, stored and executed later; its outcome is the operation in the answer.", "response": text(schemaOf[Receipt]())}})
	}
	for _, v := range s.door.Verbs() {
		out = append(out, endpoint{string(v.Kind) + "-" + v.Name, CommandPrefix + "*." + string(v.Kind) + "." + v.Name,
			map[string]string{"doc": v.Doc, "request": text(v.Request), "response": response}})
	}
	return out
}

func text(schema json.Marshaler) string {
	b, err := schema.MarshalJSON()
	if err != nil {
		panic(err) // the schema of one of our own types
	}
	return string(b)
}

// Close takes no more commands, finishes those that have arrived, and returns
// when their answers are sent, or with the context's error. No command takes
// longer than 10 s.
func (s *Service) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*patience) // a flush needs a deadline
	defer cancel()
	if err := s.micro.Stop(); err != nil {
		return err
	}
	if err := s.conn.FlushWithContext(ctx); err != nil { // the bus sends no more
		return err
	}
	done := make(chan struct{})
	// After what has arrived was handed on.
	if err := s.conn.Barrier(func() {
		go func() {
			s.work.Wait()
			s.end.Do(func() { close(s.closed) })
			close(done)
		}()
	}); err != nil {
		return err
	}
	select {
	case <-done:
		return s.conn.FlushWithContext(ctx)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Service) stats(e *micro.Endpoint) any {
	c := s.count[e.Name]
	if c == nil {
		return Stats{}
	}
	return Stats{c.requests.Load(), c.refused.Load(), c.failed.Load(), c.nanoseconds.Load()}
}

// dispatch hands the message to a worker that has nothing to do, or to a new one,
// once there is room.
func (s *Service) dispatch(r micro.Request) {
	s.work.Add(1)
	select {
	case s.jobs <- r:
		return
	default:
	}
	select {
	case s.jobs <- r:
	case s.slots <- struct{}{}:
		go s.works(r)
	}
}

// works serves commands until the service is closed. A goroutine for each command
// would have to grow its stack each time, which takes longer than deciding.
func (s *Service) works(r micro.Request) {
	for {
		s.serve(r.Subject(), r.Reply(), nats.Header(r.Headers()), r.Data())
		s.work.Done()
		select {
		case r = <-s.jobs:
		case <-s.closed:
			return
		}
	}
}

// refusal is the answer to a command that was not accepted.
type refusal struct {
	CommandID events.CommandID `json:"command_id,omitempty"`
	Error     Failure          `json:"error"`
}

func (s *Service) serve(subject, reply string, h nats.Header, body []byte) {
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	a, err := parseSubject(subject)
	counts := s.counters(a)
	counts.requests.Add(1)
	var answer any
	var id events.CommandID
	if err == nil {
		answer, id, err = s.execute(ctx, a, h, body)
	}
	if err == nil {
		s.respond(reply, nil, answer)
	} else {
		f := FailureOf(err, s.door.log)
		if f.Status() < 500 {
			counts.refused.Add(1)
		} else {
			counts.failed.Add(1)
		}
		if reply == "" {
			s.door.log.Warn("a command that waits for no answer was refused", "subject", subject, "command", id, "code", f.Code, "text", f.Text)
		}
		s.respond(reply, nats.Header{
			micro.ErrorHeader:     {strings.ToValidUTF8(strings.Join(strings.Fields(f.Text), " "), "?")},
			micro.ErrorCodeHeader: {strconv.Itoa(f.Status())},
		}, refusal{id, f})
	}
	counts.nanoseconds.Add(time.Since(start).Nanoseconds())
}

// execute gives what to answer; a panic is an internal error of this command alone.
func (s *Service) execute(ctx context.Context, a address, h nats.Header, body []byte) (answer any, id events.CommandID, err error) {
	defer func() {
		if p := recover(); p != nil {
			stack := make([]byte, 8<<10)
			err = fmt.Errorf("panic: %v\n%s", p, stack[:runtime.Stack(stack, false)])
		}
	}()
	r, err := s.door.request(ctx, a, h, body)
	if err != nil {
		return nil, r.Command, err
	}
	if a.inbox {
		answer, err = s.inbox.Accept(ctx, r)
	} else {
		answer, err = s.door.Do(ctx, r)
	}
	return answer, r.Command, err
}

func (s *Service) counters(a address) *counters {
	name := string(a.kind) + "-" + a.verb
	switch {
	case a.agent != "":
		name = "agent"
	case a.inbox:
		name = "inbox"
	}
	if c := s.count[name]; c != nil {
		return c
	}
	return s.count["unknown"]
}

// respond publishes the answer. micro's own Respond may not be called after its
// handler has returned.
func (s *Service) respond(reply string, h nats.Header, answer any) {
	if reply == "" {
		return
	}
	data, err := json.Marshal(answer)
	if err == nil {
		err = s.conn.PublishMsg(&nats.Msg{Subject: reply, Header: h, Data: data})
	}
	if err != nil {
		s.door.log.Warn("an answer could not be sent", "error", err)
	}
}
