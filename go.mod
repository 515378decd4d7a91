module github.com/tombolo-vdc/tombolo

go 1.26.0

require (
	github.com/klauspost/compress v1.20.3
	golang.org/x/sync v0.24.0
	golang.org/x/sys v0.49.0
)

require golang.org/x/time v0.16.0
