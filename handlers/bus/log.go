package bus

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"syscall"
)

// logger hands the server's log to slog. What the server calls fatal does not
// end the process: it is kept, and Embedded fails with it. A disk that does not
// take what is written is told on failed: nats-server stores nothing more in that
// stream until it is started again, and says so here alone.
type logger struct {
	log    *slog.Logger
	failed chan error // of room for one: the first

	mu   sync.Mutex
	last string // of the fatal ones
}

func (l *logger) Noticef(format string, v ...any) { l.log.Info(fmt.Sprintf(format, v...)) }
func (l *logger) Warnf(format string, v ...any)   { l.log.Warn(fmt.Sprintf(format, v...)) }
func (l *logger) Debugf(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }
func (l *logger) Tracef(format string, v ...any)  { l.log.Debug(fmt.Sprintf(format, v...)) }

func (l *logger) Errorf(format string, v ...any) {
	l.log.Error(fmt.Sprintf(format, v...))
	for _, a := range v {
		if err, ok := a.(error); ok && diskFailed(err) {
			select {
			case l.failed <- err:
			default:
			}
		}
	}
}

func diskFailed(err error) bool {
	return slices.ContainsFunc([]syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EIO, syscall.EROFS}, func(e syscall.Errno) bool { return errors.Is(err, e) })
}

func (l *logger) Fatalf(format string, v ...any) {
	l.mu.Lock()
	l.last = fmt.Sprintf(format, v...)
	l.mu.Unlock()
	l.log.Error(fmt.Sprintf(format, v...))
}

func (l *logger) fatal() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}
