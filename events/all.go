package events

import "encoding/json"

// all is the table of contents: one line per event.
func all() []Definition {
	return []Definition{
		define[AccountCreated](KindAccount),
		define[UserAdded](KindAccount),
		define[UserRemoved](KindAccount),

		define[RegionAdded](KindRegion),
		define[EpochStarted](KindRegion),
		define[AgentReplaced](KindRegion),
		define[RegionDraining](KindRegion),
		define[RegionRetired](KindRegion),

		define[NameClaimed](KindName),
		define[NameConfirmed](KindName),
		define[NameReleased](KindName),
		define[NumberClaimed](KindNumber),
		define[NumberConfirmed](KindNumber),

		define[RangeAdded](KindPool),
		define[LeasesReserved](KindPool),
		define[LeasesConfirmed](KindPool),
		define[LeasesInherited](KindPool),
		define[LeasesBound](KindPool),
		define[LeasesReleased](KindPool),
		define[LeaseGranted](KindPool),
		define[LeaseRevoked](KindPool),

		define[EnvironmentDeclared](KindEnvironment, unchanged),
		define[EnvironmentMapped](KindEnvironment),
		define[EnvironmentCreated](KindEnvironment),
		define[EnvironmentFailed](KindEnvironment),
		define[PowerSet](KindEnvironment, unchanged),
		define[MachinesObserved](KindEnvironment),
		define[EdgeSet](KindEnvironment),
		define[EnvironmentDeletionAccepted](KindEnvironment),
		define[EnvironmentDeleted](KindEnvironment),

		define[TemplateCreated](KindTemplate, unchanged),
		define[VersionSaved](KindTemplate),
		define[ReplacementStaged](KindTemplate, unchanged),
		define[ReplacementQueued](KindTemplate, unchanged),
		define[ReplacementUnqueued](KindTemplate),
		define[VersionActivated](KindTemplate),
		define[VersionAbandoned](KindTemplate),
		define[VersionRetired](KindTemplate),
		define[RegionsChanged](KindTemplate),
		define[ProtectionSet](KindTemplate),
		define[KeepSet](KindTemplate),
		define[TemplateDeletionAccepted](KindTemplate),
		define[TemplateDeleted](KindTemplate),

		define[CopyWanted](KindInstance),
		define[ResourcesMapped](KindInstance),
		define[CopyWaiting](KindInstance),
		define[CopyVerified](KindInstance),
		define[CopyFailed](KindInstance),
		define[CopyRetried](KindInstance),
		define[CopyDamaged](KindInstance),
		define[CopyKept](KindInstance),
		define[RemovalWanted](KindInstance),
		define[CopyRemoved](KindInstance),

		define[WorkOrdered](KindWork, unchanged),
		define[WorkStarted](KindWork),
		define[WorkDone](KindWork, unchanged),
		define[WorkFailed](KindWork),
		define[WorkUndoOrdered](KindWork),
		define[WorkUndone](KindWork),
		define[WorkStuck](KindWork),
		define[WorkRetried](KindWork),
		define[WorkWrittenOff](KindWork),

		define[CancelAsked](KindOperation),
		define[RetryAsked](KindOperation),
		define[OperationFinished](KindOperation),
	}
}

// unchanged lifts an event to a schema that only has further fields, which the
// older one means to be absent.
func unchanged(old json.RawMessage) (json.RawMessage, error) { return old, nil }
