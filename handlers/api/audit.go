package api

import (
	"context"

	"github.com/tombolo-vdc/tombolo/projections"
)

// Moment is how the catalogue stood at one position.
type Moment struct {
	Known
	Templates    []Template                   `json:"templates"`
	Regions      []Region                     `json:"regions"`
	Environments []projections.EnvironmentRow `json:"environments"`
}

type momentInput struct {
	Scope
	At string `path:"at" doc:"a sequence or an RFC 3339 time"`
}

// read makes the path's moment the one that is read.
func (m momentInput) read() Read { return Read{Scope: m.Scope, AsOf: m.At} }

func (s *Server) auditRoutes() {
	get(s, "/v1/audit/at/{at}", "audit-at", "The catalogue as of then", func(ctx context.Context, v at, in *momentInput) (Moment, uint64, error) {
		out := Moment{Known: v.known, Templates: []Template{}, Regions: []Region{}, Environments: []projections.EnvironmentRow{}}
		account, _, err := in.account(ctx)
		if err != nil {
			return out, 0, err
		}
		err = pages(func(resume string) (string, error) {
			page, err := projections.Catalogue{}.List(v, account, 1000, resume)
			for _, t := range page.Rows {
				out.Templates = append(out.Templates, showTemplate(t))
			}
			return page.Resume, err
		})
		if err != nil {
			return out, 0, err
		}
		err = pages(func(resume string) (string, error) {
			page, err := projections.Regions{}.List(v, 1000, resume)
			for _, r := range page.Rows {
				out.Regions = append(out.Regions, showRegion(r))
			}
			return page.Resume, err
		})
		if err != nil {
			return out, 0, err
		}
		return out, 0, pages(func(resume string) (string, error) {
			page, err := projections.Environments{}.List(v, account, "", 1000, resume)
			out.Environments = append(out.Environments, page.Rows...)
			return page.Resume, err
		})
	})
}

// pages goes through a list to its end.
func pages(read func(resume string) (string, error)) error {
	for resume := ""; ; {
		next, err := read(resume)
		if err != nil || next == "" {
			return err
		}
		resume = next
	}
}
