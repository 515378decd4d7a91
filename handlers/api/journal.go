package api

import (
	"context"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/tombolo-vdc/tombolo/events/journal"
)

// Grow raises the journal's limit to so many bytes. Its errors are *Problem where a person can do something about it.
type Grow func(ctx context.Context, bytes int64) error

// Backup writes everything that the control plane needs into a new directory, while it runs. Its errors are *Problem
// where a person can do something about it.
type Backup func(ctx context.Context, to string) (BackupMade, error)

// BackupMade is what a backup holds.
type BackupMade struct {
	Directory string `json:"directory"`
	Position  uint64 `json:"position" doc:"of the journal; a restored one goes on from there"`
	Head      string `json:"head" doc:"SEQUENCE:DIGEST there, for audit verify --head"`
	Bytes     int64  `json:"bytes"`
	Streams   int    `json:"streams"`
	Files     int    `json:"files"`
}

type backupInput struct {
	Scope
	Body struct {
		To string `json:"to" doc:"absolute path of a directory on the server's machine, that is not there yet or is empty"`
	}
}

// JournalRoom is how full the journal is.
type JournalRoom struct {
	Used    uint64 `json:"used" doc:"bytes"`
	Limit   uint64 `json:"limit" doc:"bytes; 0 is without limit"`
	Warning string `json:"warning,omitempty" doc:"from eight tenths on"`
}

type growInput struct {
	Scope
	Body struct {
		To int64 `json:"to" minimum:"1" doc:"bytes that the journal may take from now on"`
	}
}

func (s *Server) journalRoutes() {
	huma.Register(s.api, huma.Operation{OperationID: "journal-room", Method: http.MethodGet, Path: "/v1/journal", Tags: []string{"journal"}, Summary: "How full is the journal?"},
		func(ctx context.Context, _ *struct{ Scope }) (*struct{ Body JournalRoom }, error) { return s.room(ctx) })
	huma.Register(s.api, huma.Operation{OperationID: "backup", Method: http.MethodPost, Path: "/v1/backup", Tags: []string{"journal"}, DefaultStatus: http.StatusOK,
		Summary: "Write a consistent copy of the journal, the documents and the keys into a directory of the server's machine"},
		func(ctx context.Context, in *backupInput) (*struct{ Body BackupMade }, error) {
			if err := mustAdministrate(ctx); err != nil {
				return nil, s.problemOf(ctx, err)
			}
			if s.Backup == nil {
				return nil, problem(http.StatusServiceUnavailable, "not-here", "this is a region: the journal is elsewhere").withNext("send it to the control plane at %s", s.Home)
			}
			made, err := s.Backup(ctx, in.Body.To)
			if err != nil {
				return nil, s.problemOf(ctx, err)
			}
			s.Log.Info("a backup was made", "to", made.Directory, "position", made.Position, "by", callerOf(ctx).User)
			return &struct{ Body BackupMade }{made}, nil
		})
	huma.Register(s.api, huma.Operation{OperationID: "journal-grow", Method: http.MethodPost, Path: "/v1/journal/grow", Tags: []string{"journal"}, DefaultStatus: http.StatusOK, Summary: "Raise the journal's limit, while it runs"},
		func(ctx context.Context, in *growInput) (*struct{ Body JournalRoom }, error) {
			if err := mustAdministrate(ctx); err != nil {
				return nil, s.problemOf(ctx, err)
			}
			if s.Grow == nil {
				return nil, problem(http.StatusServiceUnavailable, "not-here", "this is a region: the journal is elsewhere").withNext("send it to the control plane at %s", s.Home)
			}
			if err := s.Grow(ctx, in.Body.To); err != nil {
				return nil, s.problemOf(ctx, err)
			}
			s.Log.Info("the journal's limit was raised", "to", in.Body.To, "by", callerOf(ctx).User)
			return s.room(ctx)
		})
}

func (s *Server) room(ctx context.Context) (*struct{ Body JournalRoom }, error) {
	used, limit, err := s.Journal.Usage(ctx)
	if err != nil {
		return nil, s.problemOf(ctx, err)
	}
	return &struct{ Body JournalRoom }{JournalRoom{used, limit, Fullness(journal.LevelOf(used, limit))}}, nil
}
