// Package howto runs what docs/how-to tells people to run, against the real
// bus and the real door.
package howto
