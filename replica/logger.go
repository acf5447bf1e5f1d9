package replica

import (
	"fmt"
	"log/slog"

	"go.etcd.io/raft/v3"

	"github.com/blixard/blixard/internal/invariant"
)

// raftLogger gives Raft's own lines to slog. What Raft calls information is
// detail here.
type raftLogger struct{ l *slog.Logger }

var _ raft.Logger = raftLogger{}

func (r raftLogger) Debug(v ...any)                   { r.l.Debug(fmt.Sprint(v...)) }
func (r raftLogger) Debugf(format string, v ...any)   { r.l.Debug(fmt.Sprintf(format, v...)) }
func (r raftLogger) Info(v ...any)                    { r.l.Debug(fmt.Sprint(v...)) }
func (r raftLogger) Infof(format string, v ...any)    { r.l.Debug(fmt.Sprintf(format, v...)) }
func (r raftLogger) Warning(v ...any)                 { r.l.Warn(fmt.Sprint(v...)) }
func (r raftLogger) Warningf(format string, v ...any) { r.l.Warn(fmt.Sprintf(format, v...)) }
func (r raftLogger) Error(v ...any)                   { r.l.Error(fmt.Sprint(v...)) }
func (r raftLogger) Errorf(format string, v ...any)   { r.l.Error(fmt.Sprintf(format, v...)) }
func (r raftLogger) Fatal(v ...any)                   { invariant.Fail("raft: %s", fmt.Sprint(v...)) }
func (r raftLogger) Fatalf(format string, v ...any)   { invariant.Fail("raft: "+format, v...) }
func (r raftLogger) Panic(v ...any)                   { invariant.Fail("raft: %s", fmt.Sprint(v...)) }
func (r raftLogger) Panicf(format string, v ...any)   { invariant.Fail("raft: "+format, v...) }
