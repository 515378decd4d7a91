package commands

import (
	"context"
	"strings"

	"github.com/tombolo-vdc/tombolo/aggregates"
	"github.com/tombolo-vdc/tombolo/aggregates/account"
	"github.com/tombolo-vdc/tombolo/aggregates/environment"
	"github.com/tombolo-vdc/tombolo/aggregates/instance"
	"github.com/tombolo-vdc/tombolo/aggregates/operation"
	"github.com/tombolo-vdc/tombolo/aggregates/pool"
	"github.com/tombolo-vdc/tombolo/aggregates/region"
	"github.com/tombolo-vdc/tombolo/aggregates/template"
	"github.com/tombolo-vdc/tombolo/aggregates/work"
	"github.com/tombolo-vdc/tombolo/events"
)

// table lists every command that can be sent. A new one that maps onto an
// aggregate's command is one line here.
func table() []Verb {
	return []Verb{
		createTemplate(),
		instantiateTemplate(),
		direct("template", "replace", "Save a further version, stage it in all regions and switch the reference to it.",
			starts(func(c *template.Replace) *events.OperationID { return &c.Operation }),
			fill[template.Replace]{optional: "policy", set: switchEverywhere, check: checkReplace}),
		direct("template", "set-regions", "Add regions that should hold the template, and remove others.",
			starts(func(c *template.SetRegions) *events.OperationID { return &c.Operation }),
			fill[template.SetRegions]{check: checkRegions}),
		direct("template", "rollback", "Move the reference back to a version that was kept.",
			starts(func(c *template.Rollback) *events.OperationID { return &c.Operation })),
		direct[template.Protect]("template", "protect", "Protect the template against deletion, or take the protection off."),
		direct[template.Keep]("template", "keep", "Say how many superseded versions stay; those beyond are removed."),
		direct("template", "delete", "Delete the template with every copy.",
			starts(func(c *template.Delete) *events.OperationID { return &c.Operation })),

		createEnvironment(),
		direct("environment", "set-power", "Bring one machine, several, those of a vApp, or all to a power state.",
			starts(func(c *environment.SetPower) *events.OperationID { return &c.Operation }), fill[environment.SetPower]{check: checkMachines}),
		direct("environment", "set-edge", "Have the environment's edge let through what is said, in place of all that was set before.",
			starts(func(c *environment.SetEdge) *events.OperationID { return &c.Operation }),
			fill[environment.SetEdge]{check: checkEdge, plan: planEdge}),
		direct("environment", "report-machines", "An agent says what it saw become of machines.",
			fill[environment.ReportMachines]{hidden: "restarts"}, fill[environment.ReportMachines]{hidden: "operation", check: judgeRestarts}),
		direct("environment", "delete", "Delete the environment.",
			starts(func(c *environment.Delete) *events.OperationID { return &c.Operation })),

		direct[operation.Cancel]("operation", "cancel", "Undo what is not finished."),
		direct[operation.Retry]("operation", "retry", "Try again what failed, in one region or in all."),

		direct[work.Retry]("work", "retry", "Open a failed or stuck work order again."),
		direct[work.WriteOff]("work", "write-off", "Close a work order that nobody will do any more."),
		direct[work.Start]("work", "start", "An agent takes the order up."),
		direct[work.ReportDone]("work", "report-done", "An agent says that the effect is there."),
		direct[work.ReportFailed]("work", "report-failed", "An agent says that the effect is not there and will not come by itself."),
		direct[work.ReportUndone]("work", "report-undone", "An agent says that nothing of the effect is left."),
		direct[work.ReportStuck]("work", "report-stuck", "An agent says that the undo did not work either."),

		direct[instance.ReportVerified]("instance", "report-verified", "An agent says that its region holds the copy and has read it back."),
		direct[instance.ReportWaiting]("instance", "report-waiting", "An agent says what the copy waits for."),
		direct[instance.ReportFailed]("instance", "report-failed", "An agent says that its region does not get the copy."),
		direct[instance.ReportDamaged]("instance", "report-damaged", "An agent says that chunks no longer match their digests."),
		direct[instance.ReportRemoved]("instance", "report-removed", "An agent says that nothing of the copy is left."),

		direct[region.Add]("region", "add", "Add a region, or none if it is there."),
		direct[region.StartEpoch]("region", "start-epoch", "An agent has come up and takes its region."),
		direct[region.Takeover]("region", "takeover", "Let another agent start the region's next epoch."),
		direct("region", "drain", "Place nothing new in the region; what it holds is to leave.",
			starts(func(c *region.Drain) *events.OperationID { return &c.Operation })),
		direct("region", "retire", "End the region for good; with lost, what it held is written off.",
			starts(func(c *region.Retire) *events.OperationID { return &c.Operation }),
			fill[region.Retire]{hidden: "holds", set: countHoldings}),

		direct[pool.AddRange]("pool", "add-range", "Add addresses or values to a region's pool; the first ones make the pool."),
		direct("pool", "grant", "Lease one value by hand, outside templates and environments.",
			commandID(func(c *pool.Grant) *events.CommandID { return &c.Command })),
		direct[pool.Revoke]("pool", "revoke", "Take back a lease that was granted by hand."),

		direct[account.Create]("account", "create", "Make a tenant."),
		direct("account", "add-user", "Let a credential act for the account.", fill[account.AddUser]{check: checkPermissions}),
		direct[account.RemoveUser]("account", "remove-user", "Void a user's credential."),
	}
}

// ours are the kinds that belong to no tenant: commanded under account None.
func ours(k events.Kind) bool {
	return k == events.KindRegion || k == events.KindPool || k == events.KindAccount
}

// checkPermissions refuses the permission for a command that there is not: it
// would be a typing error that nobody notices.
func checkPermissions(_ context.Context, command *account.AddUser, c *call) error {
	for _, p := range command.Permissions {
		if v := c.door.verbs[p]; v == nil || ours(v.Kind) {
			kind, _, _ := strings.Cut(p, ".")
			return aggregates.RefuseAs(aggregates.Invalid, "permission-invalid", "there is no command %.80q that a member could be allowed", p).
				WithNext("a permission is template.delete, for instance; of a %.60q there are: %s", kind, strings.Join(c.door.verbsOf(events.Kind(kind)), ", "))
		}
	}
	return nil
}

// switchEverywhere is the policy of a replacement that names none.
func switchEverywhere(_ context.Context, to *template.Replace, _ *call) error {
	if to.Policy == (events.SwitchPolicy{}) {
		to.Policy.Kind = "all"
	}
	return nil
}

// countHoldings has the catalogue say what the region still holds; of a lost one
// it does not matter.
func countHoldings(ctx context.Context, to *region.Retire, c *call) error {
	if to.Lost {
		return nil
	}
	n, err := c.door.holdings(ctx, to.Region)
	to.Holds = n
	return err
}
