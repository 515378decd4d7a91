package chunkstest_test

import (
	"testing"

	"github.com/tombolo-vdc/tombolo/handlers/region/chunks"
	"github.com/tombolo-vdc/tombolo/handlers/region/chunks/chunkstest"
)

func TestMemory(t *testing.T) {
	chunkstest.Run(t, chunkstest.Harness{
		Open:   func(*testing.T) chunks.Store { return chunkstest.NewMemory() },
		Damage: func(_ *testing.T, s chunks.Store, id chunks.ID) { s.(*chunkstest.Memory).Damage(id) },
	})
}
