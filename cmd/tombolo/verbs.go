package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
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

// sendOnly sends a command after which there is nothing to show but its answer.
func (a *app) sendOnly(ctx context.Context, method, path string, body any) error {
	c, err := a.ready()
	if err != nil {
		return err
	}
	b, accepted, err := c.write(ctx, method, path, body)
	if err != nil {
		return err
	}
	if err := c.await(ctx, accepted.Operation); err != nil {
		return err
	}
	return a.show(b, shape{name: "id", columns: []column{{"ID", "id", false}, {"OPERATION", "operation", false}, {"SEQUENCE", "sequence", false}, {"REVISION", "revision", true}}})
}

// confirm asks whether it is meant; where nobody can be asked, it is not.
func (a *app) confirm(format string, args ...any) error {
	if a.yes {
		return nil
	}
	question := fmt.Sprintf(format, args...)
	if a.noInput || !isTerminal(a.in) {
		return fail(exitConfirm, "confirmation-needed", "%s Nothing was done", question).withNext("say --yes")
	}
	fmt.Fprintf(a.err, "%s [y/N] ", question)
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && err != io.EOF {
		return err
	}
	if s := strings.ToLower(strings.TrimSpace(answer)); s != "y" && s != "yes" {
		return fail(exitConfirm, "not-confirmed", "nothing was done")
	}
	return nil
}

func atoi(what, text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return 0, usage("%s: %q is not a number from 1", what, text)
	}
	return n, nil
}
