package commands

import "time"

// SetPause sets the pause after so many tries, so that a test need not wait.
func (in *Inbox) SetPause(pause func(tries int) time.Duration) { in.pause = pause }
