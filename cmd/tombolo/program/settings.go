package program

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/pool"
	"github.com/tombolo-vdc/tombolo/aggregates/region"
	"github.com/tombolo-vdc/tombolo/events"
)

// Settings is what a file says of an installation: which regions there are, where, and with which stock.
type Settings struct {
	Regions []RegionSettings `yaml:"regions" json:"regions,omitempty" jsonschema:"the regions, in the order in which they are made known"`
	Places  []PlaceSettings  `yaml:"places" json:"places,omitempty" jsonschema:"places by name, for regions whose id is the name in lower case with hyphens; big cities are known already"`
}

// PlaceSettings is where something is; what is absent is taken from the place that is known by the region's id.
type PlaceSettings struct {
	Name      string   `yaml:"name" json:"name,omitempty" jsonschema:"as people call it"`
	Aliases   []string `yaml:"aliases" json:"aliases,omitempty" jsonschema:"other spellings: a-z, 0-9 and -"`
	County    string   `yaml:"county" json:"county,omitempty"`
	State     string   `yaml:"state" json:"state,omitempty" jsonschema:"the part of the country"`
	Country   string   `yaml:"country" json:"country,omitempty"`
	Continent string   `yaml:"continent" json:"continent,omitempty"`
	Latitude  *float64 `yaml:"latitude" json:"latitude,omitempty" jsonschema:"degrees, north positive"`
	Longitude *float64 `yaml:"longitude" json:"longitude,omitempty" jsonschema:"degrees, east positive"`
}

// RegionSettings is a region.
type RegionSettings struct {
	Region        string `yaml:"region" json:"region" jsonschema:"its id: a-z, 0-9 and -, at most 63"`
	PlaceSettings `yaml:",inline"`
	Pools         []PoolSettings `yaml:"pools" json:"pools,omitempty" jsonschema:"its stock; a range that it has already is left as it is"`
}

// PoolSettings is a range of a pool, as pool add takes it.
type PoolSettings struct {
	Type       string   `yaml:"type" json:"type" jsonschema:"such as public-address or vpn-endpoint"`
	Prefix     string   `yaml:"prefix" json:"prefix,omitempty" jsonschema:"addresses as CIDR; either this or values"`
	Values     []string `yaml:"values" json:"values,omitempty" jsonschema:"values one by one"`
	Bind       string   `yaml:"bind" json:"bind,omitempty" jsonschema:"where the prefix is really bound when the region has no privilege: as large"`
	PortOffset int      `yaml:"port_offset" json:"port_offset,omitempty" jsonschema:"added to ports where it is bound"`
}

// SettingsSchema is the JSON Schema (2020-12) of the file.
func SettingsSchema() (*jsonschema.Schema, error) {
	s, err := jsonschema.For[Settings](nil)
	if err != nil {
		return nil, err
	}
	s.Schema, s.ID, s.Title = "https://json-schema.org/draft/2020-12/schema", "urn:tombolo:settings", "An installation"
	return s, nil
}

// Fault is one thing that is wrong with settings.
type Fault struct {
	Path string // "regions[0].pools[1].prefix"
	Code string
	Text string
}

// Faults is everything that is wrong with the settings. Whether a directory has other regions already, it does not know.
func (s Settings) Faults() []Fault {
	var out []Fault
	spelled := map[string]string{} // id or alias → path
	say := func(path, spelling string) {
		if other, there := spelled[spelling]; there {
			out = append(out, Fault{path, "region-invalid", fmt.Sprintf("%s stands for a region already, at %s", spelling, other)})
			return
		}
		spelled[spelling] = path
	}
	refuse := func(path string, err error) {
		if r, ok := aggregates.AsRefusal(err); ok {
			out = append(out, Fault{path, r.Code, r.Text})
		}
	}
	for i, p := range s.Places {
		if p.Name == "" {
			out = append(out, Fault{fmt.Sprintf("places[%d]", i), "place-invalid", "the place has no name"})
		}
	}
	for i, r := range s.Regions {
		path := fmt.Sprintf("regions[%d]", i)
		say(path+".region", r.Region)
		profile := s.profile(events.RegionID(r.Region))
		for n, a := range profile.Aliases {
			if n < len(r.Aliases) {
				say(fmt.Sprintf("%s.aliases[%d]", path, n), a)
			}
		}
		_, err := region.Add{Region: events.RegionID(r.Region), Profile: profile}.Decide(region.State{}, aggregates.Facts{})
		refuse(path+".region", err)
		pools := map[string]pool.State{}
		for n, c := range r.Pools {
			at := fmt.Sprintf("%s.pools[%d]", path, n)
			if !events.IsToken(c.Type) {
				out = append(out, Fault{at, "pool-invalid", fmt.Sprintf("%q is not a type of resource: use a-z, 0-9 and -, at most 63", c.Type)})
				continue
			}
			e, err := c.command(r.Region).Decide(pools[c.Type], aggregates.Facts{})
			refuse(at, err)
			if err == nil && e != nil {
				pools[c.Type] = pools[c.Type].Fold(e)
			}
		}
	}
	return out
}

func (c PoolSettings) command(region string) pool.AddRange {
	return pool.AddRange{Region: events.RegionID(region), Type: events.PoolID(c.Type), Prefix: c.Prefix, Values: c.Values, Bind: c.Bind, PortOffset: c.PortOffset}
}

// Names are the ids of the regions.
func (s Settings) Names() []string {
	var out []string
	for _, r := range s.Regions {
		out = append(out, r.Region)
	}
	return out
}

// region gives what the settings say of a region; false if nothing.
func (s Settings) region(id events.RegionID) (RegionSettings, bool) {
	i := slices.IndexFunc(s.Regions, func(r RegionSettings) bool { return r.Region == string(id) })
	if i < 0 {
		return RegionSettings{}, false
	}
	return s.Regions[i], true
}

// profile describes a region: as the settings say, else as the place that its id is the name of.
func (s Settings) profile(id events.RegionID) events.RegionProfile {
	profile := place(id)
	for _, p := range s.Places {
		if slug(p.Name) == string(id) {
			profile = p.over(events.RegionProfile{})
		}
	}
	r, _ := s.region(id)
	return r.over(profile)
}

// over gives the profile with what is said here in the place of what it says.
func (p PlaceSettings) over(profile events.RegionProfile) events.RegionProfile {
	for _, text := range []struct {
		said string
		to   *string
	}{{p.Name, &profile.Name}, {p.County, &profile.County}, {p.State, &profile.State}, {p.Country, &profile.Country}, {p.Continent, &profile.Continent}} {
		if text.said != "" {
			*text.to = text.said
		}
	}
	if p.Aliases != nil {
		profile.Aliases = p.Aliases
	}
	if p.Latitude != nil {
		profile.Latitude = *p.Latitude
	}
	if p.Longitude != nil {
		profile.Longitude = *p.Longitude
	}
	return profile
}

// bootstrapPools gives a region the stock that the settings say it has.
func (p *Program) bootstrapPools(ctx context.Context, id events.RegionID) error {
	r, _ := p.config.Settings.region(id)
	for _, c := range r.Pools {
		err := bootstrap(ctx, p, fmt.Sprintf("pool-%s-%+v", id, c), c.command(string(id)))
		if refusal, ok := aggregates.AsRefusal(err); ok {
			return &Error{Code: refusal.Code, Text: fmt.Sprintf("the pool %s of region %s: %s", c.Type, id, refusal.Text), Next: "correct the pools in the settings, or look at what is there: tombolo pool show"}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
