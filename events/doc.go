// Package events is Tombolo's vocabulary: every fact that can be recorded, the
// ids and values those facts are made of, and the registry that turns facts
// into bytes and back. It imports the standard library only, so that anything
// may depend on it.
//
// One file per aggregate declares that aggregate's events; registry.go is the
// table of contents. A wire name, once released, never changes; a shape that
// must change gets a higher schema number and an upcast (see Definition).
package events
