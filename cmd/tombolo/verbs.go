package main

import (
	"context"
	"net/url"
)

// showOne reads one thing and prints it.
func (a *app) showOne(ctx context.Context, path string, query url.Values, s shape) error {
	c, err := a.ready()
	if err != nil {
		return err
	}
	return a.again(ctx, c, func() ([]byte, error) { return c.read(ctx, path, query) }, s)
}

// showList reads a whole list and prints it.
func (a *app) showList(ctx context.Context, path string, query url.Values, s shape) error {
	c, err := a.ready()
	if err != nil {
		return err
	}
	return a.again(ctx, c, func() ([]byte, error) { return c.list(ctx, path, query) }, s)
}

// sendAndShow sends a command, waits for what it set in motion, and prints what
// the thing is then.
func (a *app) sendAndShow(ctx context.Context, method, path string, body any, then func(id string) string, s shape) error {
	c, err := a.ready()
	if err != nil {
		return err
	}
	_, accepted, err := c.write(ctx, method, path, body)
	if err != nil {
		return err
	}
	if err := c.await(ctx, accepted.Operation); err != nil {
		return err
	}
	b, err := c.read(ctx, then(accepted.ID), nil)
	if err != nil {
		return err
	}
	return a.show(b, s)
}

// ready checks the flags and signs in.
func (a *app) ready() (*client, error) {
	if err := a.checkOutput(); err != nil {
		return nil, err
	}
	return a.signIn()
}
