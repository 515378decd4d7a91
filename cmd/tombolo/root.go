package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/tombolo-vdc/tombolo/cmd/tombolo/contexts"
	"github.com/tombolo-vdc/tombolo/handlers/trust"
)

// streams are where data (out) and talk (err) go.
type streams struct {
	in  io.Reader
	out io.Writer
	err io.Writer
}

// app is one run of the command line: its flags and what follows from them.
type app struct {
	streams
	env func(string) string

	context  string
	account  string
	output   string
	wait     bool
	noWait   bool
	timeout  time.Duration
	watch    bool
	asOf     string
	dryRun   bool
	yes      bool
	noInput  bool
	key      string
	revision uint64
	quiet    bool
	verbose  int

	position uint64 // of the last write, that reads wait for
}

// execute runs one command line and gives the exit code.
func execute(ctx context.Context, args []string, s streams, env func(string) string) int {
	a := &app{streams: s, env: env}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var f *failure
	if !errors.As(err, &f) { // cobra's own: flags, arguments, unknown commands
		f = usage("%v", err)
	}
	f.print(a)
	return f.Exit
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "tombolo",
		Short: "Virtual data centers as templates, kept, verified, in many regions",
		Long: `Virtual data centers as templates, kept, verified, in many regions.

  tombolo up            starts everything in one process
  tombolo demo          shows the main job end to end
  tombolo where REF     says which regions hold which version`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs, // an unknown noun is a usage error
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	f := root.PersistentFlags()
	f.StringVar(&a.context, "context", "", "name of a context, or its file (TOMBOLO_CONTEXT)")
	f.StringVar(&a.account, "account", "", "act in this account (administrators; TOMBOLO_ACCOUNT)")
	f.StringVarP(&a.output, "output", "o", "table", "table, wide, json, yaml, name or jsonpath=EXPRESSION")
	f.BoolVar(&a.wait, "wait", true, "wait until the operation has ended")
	f.BoolVar(&a.noWait, "no-wait", false, "do not wait")
	f.DurationVar(&a.timeout, "timeout", 0, "wait at most so long (exit 7 when it is over); 0 is without limit")
	f.BoolVarP(&a.watch, "watch", "w", false, "show it again whenever something of it changes")
	f.StringVar(&a.asOf, "as-of", "", "show it as of this sequence or RFC 3339 time")
	f.BoolVarP(&a.yes, "yes", "y", false, "confirm without being asked")
	f.BoolVar(&a.noInput, "no-input", false, "never ask")
	f.StringVar(&a.key, "idempotency-key", "", "the command's id: sent twice, it has one effect and one answer")
	f.Uint64Var(&a.revision, "if-revision", 0, "refuse unless it is at this revision")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "no talk on stderr")
	f.CountVarP(&a.verbose, "verbose", "v", "more talk on stderr")
	root.CompletionOptions.HiddenDefaultCmd = false
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok && unknown.GetSpecifiedName() == "dry-run" {
			return usage("this command has no plan to show; nothing was done").withNext("leave --dry-run away")
		}
		return err
	})
	root.AddCommand(a.upCommand(), a.demoCommand(), a.serverCommand(), a.agentCommand(), a.orphansCommand(), a.regionCommand(), a.poolCommand(), a.envCommand(), a.templateCommand(), a.whereCommand(),
		a.eventsCommand(), a.auditCommand(), a.operationCommand(), a.workCommand(), a.handlerCommand(), a.accountCommand(),
		a.contextCommand(), a.doctorCommand(), a.versionCommand(), a.regionHost())
	for _, c := range root.Commands() {
		strict(c)
	}
	return root
}

// strict makes a noun without a verb, or with one that it does not have, a usage
// error rather than a help text with exit 0.
func strict(c *cobra.Command) {
	if c.HasSubCommands() && c.RunE == nil && c.Run == nil {
		c.Args = cobra.NoArgs
		c.RunE = func(c *cobra.Command, _ []string) error {
			return usage("%s needs a verb", c.CommandPath()).withNext("%s --help lists them", c.CommandPath())
		}
	}
	for _, sub := range c.Commands() {
		strict(sub)
	}
}

// noun makes the command of a noun.
func noun(name, short string, verbs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: name, Short: short}
	c.AddCommand(verbs...)
	return c
}

// verb makes a command of a verb; what run gives is a *failure or nil.
func (a *app) verb(use, short string, args cobra.PositionalArgs, run func(ctx context.Context, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, RunE: func(c *cobra.Command, args []string) error {
		if a.timeout < 0 {
			return usage("--timeout %s is negative", a.timeout).withNext("0 waits without limit")
		}
		return failed(run(c.Context(), args))
	}}
}

// planned gives a command that has a plan to show the flag that asks for it.
func (a *app) planned(c *cobra.Command) *cobra.Command {
	c.Flags().BoolVar(&a.dryRun, "dry-run", false, "print the plan and do nothing")
	return c
}

// signIn finds the server and the credentials: flag, environment, current context.
func (a *app) signIn() (*client, error) {
	name := a.context
	if name == "" {
		name = a.env("TOMBOLO_CONTEXT")
	}
	dir, err := a.configDir()
	if err != nil && name == "" {
		return nil, err
	}
	known, err := contexts.Load(dir)
	if err != nil {
		return nil, err
	}
	c, err := known.Find(name)
	switch {
	case errors.Is(err, contexts.ErrNone):
		return nil, fail(exitError, "context-missing", "it is not known which server to ask: no context is chosen").
			withNext("start one with `tombolo up`, or name its file: --context DIR/context.json")
	case errors.Is(err, contexts.ErrUnknown):
		return nil, fail(exitNotFound, "context-unknown", "there is no context %q", name).withNext("tombolo context ls")
	case errors.Is(err, os.ErrNotExist):
		return nil, fail(exitNotFound, "context-unknown", "the context's file is not there: %v", err).withNext("tombolo context ls")
	case err != nil:
		return nil, fail(exitError, "context-invalid", "%v", err)
	}
	if account := a.account; account != "" {
		c.Account = accountID(account)
	} else if account := a.env("TOMBOLO_ACCOUNT"); account != "" {
		c.Account = accountID(account)
	}
	var authority *x509.CertPool
	if c.Authority != "" {
		authority = x509.NewCertPool()
		if !authority.AppendCertsFromPEM([]byte(c.Authority)) {
			return nil, fail(exitError, "context-invalid", "the authority of context %s is not a certificate in PEM", c.Name)
		}
	}
	by, err := trust.Reach(c.HTTP, authority)
	if err != nil {
		return nil, fail(exitError, "context-invalid", "%v", err)
	}
	return &client{app: a, context: c, http: &http.Client{Transport: by}}, nil
}

// configDir is where the person's list of contexts is.
func (a *app) configDir() (string, error) {
	if dir := a.env("XDG_CONFIG_HOME"); dir != "" {
		return dir, nil
	}
	if home := a.env("HOME"); home != "" {
		return home + "/.config", nil
	}
	return "", fail(exitError, "home-missing", "neither XDG_CONFIG_HOME nor HOME says where contexts are kept").withNext("--context FILE")
}

// say talks to the person, unless told to be quiet.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.err, format+"\n", args...)
	}
}

// isTerminal reports whether the stream is one that a person watches.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// color reports whether colours are welcome (https://no-color.org).
func (a *app) color() bool {
	return isTerminal(a.err) && a.env("NO_COLOR") == "" && a.env("TERM") != "dumb"
}

// log is for what runs in this process; -v shows more.
func (a *app) log() *slog.Logger {
	level := slog.LevelWarn
	switch {
	case a.quiet:
		level = slog.LevelError
	case a.verbose == 1:
		level = slog.LevelInfo
	case a.verbose > 1:
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: level}))
}
