package processes

import (
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/instance"
	"github.com/tombolo-vdc/tombolo/events"
)

// The words of stories as the values that they stand for. A word that makes no
// sense is an error of the story and stops the test.

var quiet = slog.New(slog.DiscardHandler)

func whole(s string) int {
	if s == "" {
		return 0
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

func duration(s string) time.Duration {
	d, err := time.ParseDuration(s)
	if err != nil {
		panic(err)
	}
	return d
}

func source(one func(string) string) events.Source {
	return events.Source{Environment: events.EnvironmentID(one("from")), Region: events.RegionID(one("in"))}
}

// resources are id:type:value, or id:type:value:what-it-leans-on.
func resources(words []string) (out []events.ResourceRef) {
	for _, word := range words {
		p := append(strings.Split(word, ":"), "", "")
		out = append(out, events.ResourceRef{ID: p[0], Type: p[1], Value: p[2], LeansOn: p[3]})
	}
	return out
}

// choices are region:resource:value.
func choices(words []string) (out []events.Choice) {
	for _, word := range words {
		p := strings.Split(word, ":")
		out = append(out, events.Choice{Region: events.RegionID(p[0]), Resource: p[1], Value: p[2]})
	}
	return out
}

func environmentRef(words []string) environment.Ref {
	return environment.Ref{Environment: events.EnvironmentID(words[0]), Region: events.RegionID(words[1])}
}

func instanceRef(t events.TemplateID, v int, in string) instance.Ref {
	return instance.Ref{Region: events.RegionID(in), Instance: instance.ID(acme, t, v, events.RegionID(in))}
}
