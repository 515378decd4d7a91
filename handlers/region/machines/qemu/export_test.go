package qemu

import "strings"

// Tag is how the processes of a folder's driver are told from others.
func Tag(dir string) string { return strings.TrimPrefix(tagOf(dir), "guest=") }

// DialAt connects to a socket in a machine's folder.
var DialAt = dialAt
