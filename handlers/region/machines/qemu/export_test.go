package qemu

import "strings"

// Tag is how the processes of a folder's driver are told from others.
func Tag(dir string) string { return strings.TrimPrefix(tagOf(dir), "guest=") }

// DialAt connects to a socket in a machine's folder.
var DialAt = dialAt

// Lenient passes over the strictest profiles, as a host would that does not allow them.
func (c *Config) Lenient(n int) { c.lenient = n }

// Newest is the machine type that the driver takes of a list.
func Newest(list string) string { return newestOf([]byte(list)) }
