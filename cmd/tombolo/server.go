package main

import (
	"context"
	"encoding/json"
	"net/http"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/program"
)

func (a *app) serverGrow() *cobra.Command {
	var to int64
	grow := a.verb("grow --to BYTES", "Raise the journal's limit, while the server runs", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		if to <= 0 {
			return usage("server grow needs --to BYTES")
		}
		c, err := a.ready()
		if err != nil {
			return err
		}
		b, _, err := c.write(ctx, http.MethodPost, "/v1/journal/grow", map[string]int64{"to": to})
		if err != nil {
			return err
		}
		return a.show(b, shape{items: "", name: "limit", columns: []column{{"USED", "used", false}, {"LIMIT", "limit", false}, {"WARNING", "warning", false}}})
	})
	grow.Flags().Int64Var(&to, "to", 0, "bytes that the journal may take from now on")
	return grow
}

var backupShape = shape{items: "", name: "directory", columns: []column{{"DIRECTORY", "directory", false}, {"POSITION", "position", false}, {"BYTES", "bytes", false}, {"HEAD", "head", true}}}

func (a *app) serverBackup() *cobra.Command {
	var to string
	backup := a.verb("backup --to DIR", "Copy the journal, the documents and the keys, while the server runs", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		if to == "" {
			return usage("server backup needs --to DIR")
		}
		dir, err := filepath.Abs(to)
		if err != nil {
			return err
		}
		c, err := a.ready()
		if err != nil {
			return err
		}
		b, _, err := c.write(ctx, http.MethodPost, "/v1/backup", map[string]string{"to": dir})
		if err != nil {
			return err
		}
		return a.show(b, backupShape)
	})
	backup.Flags().StringVar(&to, "to", "", "directory on the server's machine that is not there yet, or is empty")
	backup.Long = `Copy the journal, the documents and the keys, while the server runs.

The copy is of one moment: every event up to its position is in it, none after, and every document that these name. It
holds the keys of the control plane, so it is readable by its owner only: keep it as you keep them. What the regions have
in their stores (DIR/regions) is not in it: it stays where it is, or is copied again from other regions.`
	return backup
}

func (a *app) serverRestore() *cobra.Command {
	var from, data string
	restore := a.verb("restore --from DIR --data DIR", "Make a data directory from a backup; up or server then goes on from its position", cobra.NoArgs, func(ctx context.Context, _ []string) error {
		if from == "" || data == "" {
			return usage("server restore needs --from DIR and --data DIR")
		}
		if err := a.checkOutput(); err != nil {
			return err
		}
		made, err := program.Restore(ctx, from, data, a.log())
		if err != nil {
			return err
		}
		b, err := json.Marshal(made)
		if err != nil {
			return err
		}
		return a.show(b, backupShape)
	})
	restore.Flags().StringVar(&from, "from", "", "directory that server backup wrote")
	restore.Flags().StringVar(&data, "data", "", "data directory to make")
	restore.Long = `Make a data directory from a backup; up or server then goes on from its position.

The directory is there only once the restored journal has been walked to the head that the backup names. The regions'
stores are not in a backup. Where they are still there, put them into DIR/regions, or let the agents that have them reach
the restored server; delete the read models in them first (DIR/regions/REGION/reads), which know a later journal. Where a region's is lost, a new agent comes in with tombolo region takeover.`
	return restore
}
