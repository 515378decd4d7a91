module github.com/tombolo-vdc/tombolo

go 1.26
