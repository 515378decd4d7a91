package projections_test

import (
	"fmt"
	"strconv"
	"time"

	"github.com/tombolo-vdc/tombolo/events"
	p "github.com/tombolo-vdc/tombolo/projections"
)

type question func(v *p.View, args []string) (any, error)

// found turns the answer of a question about one row into a list of it or none.
func found[R any](row R, ok bool, err error) (any, error) {
	if !ok {
		return []R{}, err
	}
	return []R{row}, err
}

// whole reads all pages of a list, two rows at a time.
func whole[R any](page func(limit int, resume string) (p.Page[R], error)) (any, error) {
	out := []R{}
	for resume := ""; ; {
		rows, err := page(2, resume)
		if err != nil {
			return nil, err
		}
		out = append(out, rows.Rows...)
		if resume = rows.Resume; resume == "" {
			return out, nil
		}
	}
}

// brief is where's answer in the columns of a table.
func brief(v *p.View, a []string) (any, error) {
	answer, err := p.Catalogue{}.Where(v, events.AccountID(a[0]), events.TemplateID(a[1]))
	if err != nil {
		return nil, err
	}
	waits, err := p.Catalogue{}.WaitsFor(v, events.AccountID(a[0]), events.TemplateID(a[1]))
	out := []string{fmt.Sprintf("active %d at %d, waits for %v", answer.ActiveVersion, answer.Position, waits)}
	for _, i := range answer.Regions {
		fact := func(word string, is bool, by p.Evidence) string {
			if !is {
				word = "-"
			}
			return fmt.Sprintf("%s(%d)", word, by.Sequence)
		}
		line := fmt.Sprintf("%s v%d %s %s %s %s", i.Region, i.Version, fact("wanted", i.Wanted, i.WantedBy),
			fact("observed", i.Observed, i.ObservedBy), fact("verified", i.Verified, i.VerifiedBy), i.State)
		if i.Active {
			line += " active"
		}
		if i.Cause != nil {
			line += " because " + i.Cause.Code
		}
		out = append(out, line)
	}
	return out, err
}

var questions = map[string]question{
	"brief": brief,
	"where": func(v *p.View, a []string) (any, error) {
		return p.Catalogue{}.Where(v, events.AccountID(a[0]), events.TemplateID(a[1]))
	},
	"instances": func(v *p.View, a []string) (any, error) {
		return p.Catalogue{}.Instances(v, events.AccountID(a[0]), events.TemplateID(a[1]))
	},
	"instance": func(v *p.View, a []string) (any, error) {
		return found(p.Catalogue{}.Instance(v, events.InstanceID(a[0])))
	},
	"instance-map": func(v *p.View, a []string) (any, error) { return found(p.Catalogue{}.Map(v, events.InstanceID(a[0]))) },
	"held-in": func(v *p.View, a []string) (any, error) {
		return whole(func(limit int, resume string) (p.Page[p.InstanceRow], error) {
			return p.Catalogue{}.HeldIn(v, events.RegionID(a[0]), events.AccountID(a[1]), limit, resume)
		})
	},
	"template": func(v *p.View, a []string) (any, error) {
		return found(p.Catalogue{}.Template(v, events.AccountID(a[0]), events.TemplateID(a[1])))
	},
	"numbered": func(v *p.View, a []string) (any, error) {
		t, ok, err := p.Catalogue{}.Numbered(v, events.TemplateID(a[0]))
		return fmt.Sprint(t.Account, " ", t.State(), " ", ok), err
	},
	"templates": func(v *p.View, a []string) (any, error) {
		return whole(func(limit int, resume string) (p.Page[p.TemplateRow], error) {
			if a[1] != "" {
				return p.Catalogue{}.WantedIn(v, events.AccountID(a[0]), events.RegionID(a[1]), limit, resume)
			}
			return p.Catalogue{}.List(v, events.AccountID(a[0]), limit, resume)
		})
	},
	"templates-ever": func(v *p.View, a []string) (any, error) {
		return whole(func(limit int, resume string) (p.Page[p.TemplateRow], error) {
			return p.Catalogue{}.ListAll(v, events.AccountID(a[0]), limit, resume)
		})
	},
	"versions": func(v *p.View, a []string) (any, error) {
		return p.Catalogue{}.Versions(v, events.TemplateID(a[0]))
	},
	"coverage": func(v *p.View, a []string) (any, error) {
		return p.Catalogue{}.Coverage(v, events.AccountID(a[0]), events.TemplateID(a[1]))
	},
	"resolve": func(v *p.View, a []string) (any, error) {
		r, err := p.Catalogue{}.Resolve(v, events.AccountID(a[0]), a[1])
		if err != nil {
			return nil, err
		}
		out := fmt.Sprintf("%s %s v%d", r.Kind, r.Template.Number, r.Version)
		if r.Pinned {
			out += " pinned"
		}
		if r.Instance != nil {
			out += fmt.Sprintf(" in %s, instance %s", r.Region, r.Instance.ID)
		}
		return out, nil
	},

	"environment": func(v *p.View, a []string) (any, error) {
		return found(p.Environments{}.Environment(v, events.EnvironmentID(a[0])))
	},
	"environment-map": func(v *p.View, a []string) (any, error) {
		return found(p.Environments{}.Map(v, events.EnvironmentID(a[0])))
	},
	"environments": func(v *p.View, a []string) (any, error) {
		return whole(func(limit int, resume string) (p.Page[p.EnvironmentRow], error) {
			return p.Environments{}.List(v, events.AccountID(a[0]), events.RegionID(a[1]), limit, resume)
		})
	},
	"environments-in": func(v *p.View, a []string) (any, error) {
		return whole(func(limit int, resume string) (p.Page[p.EnvironmentRow], error) {
			return p.Environments{}.InRegion(v, events.RegionID(a[0]), limit, resume)
		})
	},
	"environment-named": func(v *p.View, a []string) (any, error) {
		return p.Environments{}.Named(v, events.AccountID(a[0]), events.RegionID(a[1]), a[2])
	},
	"power": func(v *p.View, a []string) (any, error) {
		e, _, err := p.Environments{}.Environment(v, events.EnvironmentID(a[0]))
		return e.PowerOf(a[1], a[2]), err
	},
	"machines": func(v *p.View, a []string) (any, error) {
		return p.Environments{}.Machines(v, events.EnvironmentID(a[0]))
	},
	"edge": func(v *p.View, a []string) (any, error) {
		return found(p.Environments{}.Edge(v, events.EnvironmentID(a[0])))
	},
	"summary": func(v *p.View, a []string) (any, error) {
		e, _, err := p.Environments{}.Environment(v, events.EnvironmentID(a[0]))
		return e.Summary(), err
	},

	"operation": func(v *p.View, a []string) (any, error) {
		return found(p.Operations{}.Operation(v, events.OperationID(a[0])))
	},
	"parts": func(v *p.View, a []string) (any, error) {
		return p.Operations{}.Parts(v, events.OperationID(a[0]))
	},
	"operations": func(v *p.View, a []string) (any, error) {
		return whole(func(limit int, resume string) (p.Page[p.OperationRow], error) {
			if a[1] != "" {
				return p.Operations{}.OfTemplate(v, events.TemplateID(a[1]), limit, resume)
			}
			return p.Operations{}.List(v, events.AccountID(a[0]), limit, resume)
		})
	},

	"work": func(v *p.View, a []string) (any, error) { return found(p.WorkOrders{}.Work(v, events.WorkID(a[0]))) },
	"order": func(v *p.View, a []string) (any, error) {
		return found(p.WorkOrders{}.Order(v, events.WorkID(a[0])))
	},
	"open": func(v *p.View, a []string) (any, error) {
		return whole(func(limit int, resume string) (p.Page[p.WorkRow], error) {
			return p.WorkOrders{}.OpenIn(v, events.RegionID(a[0]), limit, resume)
		})
	},
	"trouble": func(v *p.View, a []string) (any, error) {
		return whole(func(limit int, resume string) (p.Page[p.WorkRow], error) {
			return p.WorkOrders{}.Trouble(v, events.RegionID(a[0]), limit, resume)
		})
	},
	"work-of": func(v *p.View, a []string) (any, error) {
		return p.WorkOrders{}.OfOperation(v, events.OperationID(a[0]))
	},

	"pool": func(v *p.View, a []string) (any, error) {
		return found(p.Pools{}.Pool(v, events.RegionID(a[0]), events.PoolID(a[1])))
	},
	"pools": func(v *p.View, a []string) (any, error) {
		return whole(func(limit int, resume string) (p.Page[p.PoolRow], error) {
			return p.Pools{}.List(v, events.RegionID(a[0]), limit, resume)
		})
	},
	"ranges": func(v *p.View, a []string) (any, error) {
		return p.Pools{}.Ranges(v, events.RegionID(a[0]), events.PoolID(a[1]))
	},
	"leases": func(v *p.View, a []string) (any, error) {
		return whole(func(limit int, resume string) (p.Page[p.LeaseRow], error) {
			return p.Pools{}.Leases(v, events.RegionID(a[0]), events.PoolID(a[1]), limit, resume)
		})
	},
	"holder": func(v *p.View, a []string) (any, error) {
		l, ok, err := p.Pools{}.Holder(v, events.RegionID(a[0]), events.PoolID(a[1]), a[2])
		kind, id := l.Holder()
		return fmt.Sprint(ok, " ", kind, " ", id), err
	},
	"leases-of": func(v *p.View, a []string) (any, error) {
		switch a[0] {
		case "instance":
			return p.Pools{}.OfInstance(v, events.InstanceID(a[1]))
		case "environment":
			return p.Pools{}.OfEnvironment(v, events.EnvironmentID(a[1]))
		}
		return whole(func(limit int, resume string) (p.Page[p.LeaseRow], error) {
			return p.Pools{}.OfAccount(v, events.AccountID(a[1]), limit, resume)
		})
	},
	"place": func(v *p.View, a []string) (any, error) {
		address, offset, ok, err := p.Pools{}.Place(v, events.RegionID(a[0]), events.PoolID(a[1]), a[2])
		return fmt.Sprint(address, " +", offset, " ", ok), err
	},

	"account": func(v *p.View, a []string) (any, error) {
		return found(p.Accounts{}.Account(v, events.AccountID(a[0])))
	},
	"accounts": func(v *p.View, a []string) (any, error) {
		return whole(func(limit int, resume string) (p.Page[p.AccountRow], error) {
			return p.Accounts{}.List(v, limit, resume)
		})
	},
	"users": func(v *p.View, a []string) (any, error) {
		return whole(func(limit int, resume string) (p.Page[p.UserRow], error) {
			return p.Accounts{}.Users(v, events.AccountID(a[0]), limit, resume)
		})
	},
	"user": func(v *p.View, a []string) (any, error) {
		return found(p.Accounts{}.User(v, events.AccountID(a[0]), events.UserID(a[1])))
	},
	"nkey":  func(v *p.View, a []string) (any, error) { return found(p.Accounts{}.ByNKey(v, a[0])) },
	"token": func(v *p.View, a []string) (any, error) { return found(p.Accounts{}.ByToken(v, events.Digest(a[0]))) },

	"due": func(v *p.View, a []string) (any, error) {
		now, err := time.Parse(time.RFC3339, a[1])
		if err != nil {
			return nil, err
		}
		limit, _ := strconv.Atoi(a[2])
		return p.Deadlines{}.Due(v, p.DeadlineKind(a[0]), now, limit)
	},
	"next": func(v *p.View, a []string) (any, error) { return found(p.Deadlines{}.Next(v, p.DeadlineKind(a[0]))) },
	"command": func(v *p.View, a []string) (any, error) {
		return found(p.CommandIDs{}.Command(v, events.AccountID(a[0]), events.CommandID(a[1])))
	},
}
