package events

// all is the table of contents: one line per event.
func all() []Definition {
	return []Definition{
		define[RegionAdded](KindRegion),
		define[EpochStarted](KindRegion),
		define[AgentReplaced](KindRegion),
		define[AgentEnrolled](KindRegion),
		define[RegionDraining](KindRegion),
		define[RegionRetired](KindRegion),
	}
}
