package projections

// All is the set of projections: one line for each kind of question. Regions
// must agree on it, so that their digests can be compared.
func All() []Projection {
	return []Projection{
		Regions{},      // which regions are there, where, who runs them?
		Accounts{},     // which accounts, who may act for them, whose is a credential?
		Pools{},        // what stock has a region, who has which value?
		Environments{}, // which environments, where, in which state, made from what?
		Catalogue{},    // which templates, which region holds which version, what does a reference mean?
		Operations{},   // what did a command set in motion, how far is it, what went wrong where?
		WorkOrders{},   // which work is open in a region, what is stuck, whose is a tag?
		Deadlines{},    // what runs out when?
		CommandIDs{},   // was this command id used before, with which body?
	}
}
