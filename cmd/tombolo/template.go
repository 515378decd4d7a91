package main

var templateColumns = []column{{"TEMPLATE", "number", false}, {"NAME", "name", false}, {"VERSION", "active_version", false}, {"STATE", "state", false},
	{"REGIONS", "regions", false}, {"CREATED", "created_at", false}, {"DISPLAY", "display", true}, {"STAGED", "staged_version", true},
	{"KEEP", "keep", true}, {"PROTECTED", "protected", true}, {"REVISION", "revision", true}}
