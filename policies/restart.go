package policies

import _ "embed"

//go:embed builtin/restart.cel
var restartSource string

// RestartInput is what the restart policy judges: a machine that does
// not run any more, without anybody having asked for it.
type RestartInput struct {
	Environment string `cel:"environment" json:"environment"`
	Machine     string `cel:"machine" json:"machine"`
	Cause       string `cel:"cause" json:"cause"`       // the code: "crashed", "guest-shutdown", "region-stopped"
	Deaths      int    `cel:"deaths" json:"deaths"`     // within the last ten minutes, this one too
	Declared    string `cel:"declared" json:"declared"` // the power state that it is to be in
}

// Restart compiles the built-in restart policy: a verdict that allows has the
// machine started again.
func Restart() (*Policy[RestartInput], error) { return Compile[RestartInput]("restart", restartSource) }
