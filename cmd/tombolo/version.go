package main

import (
	"context"
	"encoding/json"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// version is the module's version, or the commit that it was built from.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	v := info.Main.Version
	if v == "" || v == "(devel)" {
		v = "devel"
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				v += "-" + s.Value[:12]
			}
		}
	}
	return v
}

func (a *app) versionCommand() *cobra.Command {
	return a.verb("version", "Which program is this?", cobra.NoArgs, func(context.Context, []string) error {
		if err := a.checkOutput(); err != nil {
			return err
		}
		b, err := json.Marshal(map[string]string{"version": version(), "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH})
		if err != nil {
			return err
		}
		return a.show(b, shape{name: "version", columns: []column{{"VERSION", "version", false}, {"GO", "go", false}, {"PLATFORM", "platform", false}}})
	})
}
