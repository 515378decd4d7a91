//go:build !linux

package chunks

import (
	"errors"
	"os"
)

// fileExtents is for systems whose file systems are not asked.
func fileExtents(*os.File, int64) ([]Extent, error) { return nil, errors.ErrUnsupported }
