package program

import (
	"strings"

	"github.com/tombolo-vdc/tombolo/events"
)

// place gives the profile of a region by its id. Cities that everybody knows have
// their real place in the world; another id is a region whose place nobody has
// said (at 0, 0), to be added with `region add` where it matters.
func place(id events.RegionID) events.RegionProfile {
	for _, p := range places() {
		if slug(p.Name) == string(id) {
			return p
		}
	}
	words := strings.Fields(strings.ReplaceAll(string(id), "-", " "))
	for i, w := range words {
		words[i] = strings.ToUpper(w[:1]) + w[1:]
	}
	return events.RegionProfile{Name: strings.Join(words, " ")}
}

func slug(name string) string { return strings.ReplaceAll(strings.ToLower(name), " ", "-") }

// places is name, aliases, county, state, country, continent, degrees north and
// east (city centres, to two decimals).
func places() []events.RegionProfile {
	return []events.RegionProfile{
		{Name: "Amsterdam", Aliases: []string{"ams"}, State: "North Holland", Country: "Netherlands", Continent: "Europe", Latitude: 52.37, Longitude: 4.90},
		{Name: "Beijing", Aliases: []string{"peking", "pek"}, State: "Beijing", Country: "China", Continent: "Asia", Latitude: 39.90, Longitude: 116.41},
		{Name: "Buenos Aires", Aliases: []string{"eze"}, Country: "Argentina", Continent: "South America", Latitude: -34.60, Longitude: -58.38},
		{Name: "Cape Town", Aliases: []string{"cpt"}, State: "Western Cape", Country: "South Africa", Continent: "Africa", Latitude: -33.92, Longitude: 18.42},
		{Name: "Chicago", Aliases: []string{"ord"}, County: "Cook County", State: "Illinois", Country: "United States", Continent: "North America", Latitude: 41.88, Longitude: -87.63},
		{Name: "Dallas", Aliases: []string{"dfw"}, County: "Dallas County", State: "Texas", Country: "United States", Continent: "North America", Latitude: 32.78, Longitude: -96.80},
		{Name: "Dubai", Aliases: []string{"dxb"}, Country: "United Arab Emirates", Continent: "Asia", Latitude: 25.20, Longitude: 55.27},
		{Name: "Dublin", Aliases: []string{"dub"}, County: "Dublin", Country: "Ireland", Continent: "Europe", Latitude: 53.35, Longitude: -6.26},
		{Name: "Frankfurt", Aliases: []string{"fra"}, State: "Hesse", Country: "Germany", Continent: "Europe", Latitude: 50.11, Longitude: 8.68},
		{Name: "Hong Kong", Aliases: []string{"hkg"}, Country: "China", Continent: "Asia", Latitude: 22.32, Longitude: 114.17},
		{Name: "Johannesburg", Aliases: []string{"jnb"}, State: "Gauteng", Country: "South Africa", Continent: "Africa", Latitude: -26.20, Longitude: 28.05},
		{Name: "London", Aliases: []string{"lhr"}, County: "Greater London", State: "England", Country: "United Kingdom", Continent: "Europe", Latitude: 51.51, Longitude: -0.13},
		{Name: "Los Angeles", Aliases: []string{"lax"}, County: "Los Angeles County", State: "California", Country: "United States", Continent: "North America", Latitude: 34.05, Longitude: -118.24},
		{Name: "Madrid", Aliases: []string{"mad"}, State: "Community of Madrid", Country: "Spain", Continent: "Europe", Latitude: 40.42, Longitude: -3.70},
		{Name: "Melbourne", Aliases: []string{"mel"}, State: "Victoria", Country: "Australia", Continent: "Oceania", Latitude: -37.81, Longitude: 144.96},
		{Name: "Montreal", Aliases: []string{"yul"}, State: "Quebec", Country: "Canada", Continent: "North America", Latitude: 45.50, Longitude: -73.57},
		{Name: "Mumbai", Aliases: []string{"bom"}, State: "Maharashtra", Country: "India", Continent: "Asia", Latitude: 19.08, Longitude: 72.88},
		{Name: "Nairobi", Aliases: []string{"nbo"}, County: "Nairobi County", Country: "Kenya", Continent: "Africa", Latitude: -1.29, Longitude: 36.82},
		{Name: "New York", Aliases: []string{"nyc"}, County: "New York County", State: "New York", Country: "United States", Continent: "North America", Latitude: 40.71, Longitude: -74.01},
		{Name: "Osaka", Aliases: []string{"kix"}, State: "Osaka Prefecture", Country: "Japan", Continent: "Asia", Latitude: 34.69, Longitude: 135.50},
		{Name: "Paris", Aliases: []string{"cdg"}, State: "Ile-de-France", Country: "France", Continent: "Europe", Latitude: 48.86, Longitude: 2.35},
		{Name: "San Francisco", Aliases: []string{"sfo"}, County: "San Francisco County", State: "California", Country: "United States", Continent: "North America", Latitude: 37.77, Longitude: -122.42},
		{Name: "Santiago", Aliases: []string{"scl"}, Country: "Chile", Continent: "South America", Latitude: -33.45, Longitude: -70.67},
		{Name: "Sao Paulo", Aliases: []string{"gru"}, State: "Sao Paulo", Country: "Brazil", Continent: "South America", Latitude: -23.55, Longitude: -46.63},
		{Name: "Seoul", Aliases: []string{"icn"}, Country: "South Korea", Continent: "Asia", Latitude: 37.57, Longitude: 126.98},
		{Name: "Shanghai", Aliases: []string{"sha"}, Country: "China", Continent: "Asia", Latitude: 31.23, Longitude: 121.47},
		{Name: "Singapore", Aliases: []string{"sin"}, Country: "Singapore", Continent: "Asia", Latitude: 1.35, Longitude: 103.82},
		{Name: "Stockholm", Aliases: []string{"arn"}, County: "Stockholm County", Country: "Sweden", Continent: "Europe", Latitude: 59.33, Longitude: 18.07},
		{Name: "Sydney", Aliases: []string{"syd"}, State: "New South Wales", Country: "Australia", Continent: "Oceania", Latitude: -33.87, Longitude: 151.21},
		{Name: "Tokyo", Aliases: []string{"nrt"}, State: "Tokyo", Country: "Japan", Continent: "Asia", Latitude: 35.68, Longitude: 139.69},
		{Name: "Toronto", Aliases: []string{"yyz"}, State: "Ontario", Country: "Canada", Continent: "North America", Latitude: 43.65, Longitude: -79.38},
		{Name: "Warsaw", Aliases: []string{"waw"}, Country: "Poland", Continent: "Europe", Latitude: 52.23, Longitude: 21.01},
		{Name: "Zurich", Aliases: []string{"zrh"}, State: "Zurich", Country: "Switzerland", Continent: "Europe", Latitude: 47.38, Longitude: 8.54},
	}
}
