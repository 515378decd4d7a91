package main

import (
	"context"
	"crypto/sha256"
	"errors"

	"github.com/tombolo-vdc/tombolo/events"
	"github.com/tombolo-vdc/tombolo/handlers/region"
	"github.com/tombolo-vdc/tombolo/handlers/region/nbd"
)

func (d *demo) instantiate(ctx context.Context) error {
	d.tell("8", "Sydney holds it: an environment is made there at once, and no byte crosses regions")
	var made struct {
		Environment string `json:"environment"`
		Bytes       int64  `json:"bytes_between_regions"`
		Duration    int64  `json:"duration_ms"`
	}
	d.command("template", "instantiate", d.number, "--region", "sydney", "--name", "Ajax in Sydney", "--wait")
	if err := d.ask(ctx, &made, "template", "instantiate", d.number, "--region", "sydney", "--name", "Ajax in Sydney", "--wait"); err != nil {
		return err
	}
	if made.Bytes != 0 {
		return fail(exitError, "demo-failed", "%d bytes crossed regions", made.Bytes)
	}
	d.note("Made in %d ms; %d bytes between regions.", made.Duration, made.Bytes)
	if err := d.useClone(ctx, made.Environment); err != nil {
		return err
	}
	d.tell("9", "Chicago is to hold it no longer. Then an environment there has to copy first, and that is asked")
	if err := d.show(ctx, "template", "regions", d.number, "--remove", "chicago", "--wait"); err != nil {
		return err
	}
	if _, err := d.run(ctx, d.out, exitConfirm, "template", "instantiate", d.number, "--region", "chicago", "--name", "Ajax in Chicago", "--wait"); err != nil {
		return err
	}
	d.note("Exit code 6: nothing was done. Now with --yes:")
	d.command("template", "instantiate", d.number, "--region", "chicago", "--name", "Ajax in Chicago", "--yes", "--wait")
	if err := d.ask(ctx, &made, "template", "instantiate", d.number, "--region", "chicago", "--name", "Ajax in Chicago", "--yes", "--wait"); err != nil {
		return err
	}
	d.note("Made in %d ms; %.1f MiB between regions.", made.Duration, float64(made.Bytes)/(1<<20))
	d.tell("10", "What there is now")
	if err := d.show(ctx, "env", "ls"); err != nil {
		return err
	}
	return d.show(ctx, "where", d.number)
}

// useClone reads and writes the new environment's disk as a machine would, and
// shows that the stored version did not change.
func (d *demo) useClone(ctx context.Context, id string) (err error) {
	socket, err := d.program.Devices("sydney")
	if err != nil {
		return err
	}
	device, err := nbd.Dial(ctx, socket, region.Export(events.EnvironmentID(id), "web/root"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	block := make([]byte, 4096)
	if _, err := device.ReadAt(block, 1<<20); err != nil {
		return err
	}
	before := sha256.Sum256(block)
	for i := range block {
		block[i] ^= 0xff
	}
	if _, err := device.WriteAt(block, 1<<20); err != nil {
		return err
	}
	if err := device.Flush(); err != nil {
		return err
	}
	if _, err := device.ReadAt(block, 1<<20); err != nil {
		return err
	}
	if sha256.Sum256(block) == before {
		return fail(exitError, "demo-failed", "a write to the clone was lost")
	}
	d.note("Its disk is a read-write block device: a block was read, written and read back.")
	return nil
}
