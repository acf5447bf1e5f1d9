package cli_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/blixard/blixard/guest/boottest"
)

const (
	// eventLimit bounds each wait for something that comes by itself: a VM's boot
	// takes a second or two, on a busy machine many times that.
	eventLimit = 90 * time.Second
	// lookAgain is between two looks.
	lookAgain = 20 * time.Millisecond
)

// TestScripts runs the program without a node: testdata/script.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", Setup: setUpScript, Cmds: scriptCommands, RequireExplicitExec: true, RequireUniqueNames: true,
	})
}

// TestNodeScripts runs the program with a real node and real microVMs:
// testdata/vm, one script after the other so that no more than two VMs run.
func TestNodeScripts(t *testing.T) {
	deadline, _ := t.Deadline()
	testscript.RunT(oneByOne{t}, testscript.Params{
		Dir: "testdata/vm", Setup: setUpScript, Cmds: scriptCommands, RequireExplicitExec: true, RequireUniqueNames: true, Deadline: deadline,
	})
}

// oneByOne is a test whose scripts do not run at the same time.
type oneByOne struct{ *testing.T }

func (t oneByOne) Parallel()     {}
func (t oneByOne) Verbose() bool { return testing.Verbose() }

func (t oneByOne) Run(name string, f func(testscript.T)) {
	t.T.Run(name, func(t *testing.T) { f(oneByOne{t}) })
}

// setUpScript gives a script a place of its own: no setting of the person who
// runs the tests, and no node but its own, can be seen from there.
func setUpScript(env *testscript.Env) error {
	bundle, err := filepath.Abs("../bin/bundle")
	if err != nil {
		return err
	}
	env.Setenv("BUNDLE", bundle)
	env.Setenv("BLIXARD_ADDR", "unix:"+filepath.Join(env.WorkDir, "s"))
	env.Setenv("BLIXARD_CACHE_DIR", filepath.Join(env.WorkDir, "cache"))
	// Ports that nobody has.
	env.Setenv("BLIXARD_NODE_BIND", "127.0.0.1:0")
	// Scripts about networks give each node a host of its own and set this anew.
	env.Setenv("BLIXARD_NETWORK_DEFAULT", "none")
	// What else the host has to do shall not change where VMs go.
	env.Setenv("BLIXARD_SCHEDULER_LOAD", "off")
	env.Vars = append(env.Vars, coverEnv()...)
	env.Defer(func() { endProcesses(env.T(), env.WorkDir) })
	return nil
}

// coverEnv lets what a test starts tell what of it ran: `make cover` names the
// directory for it. The go command's own is thrown away with the test.
func coverEnv() []string {
	if dir := os.Getenv("BLIXARD_TEST_COVERDIR"); dir != "" {
		return []string{"GOCOVERDIR=" + dir}
	}
	return nil
}

// endProcesses ends what a script left running, which makes it fail: one that got
// to its end has stopped its node itself.
func endProcesses(t testscript.T, dir string) {
	var killed []string
	for begin := time.Now(); time.Since(begin) < eventLimit; <-time.After(lookAgain) {
		left := processes(dir)
		if len(left) == 0 {
			if len(killed) > 0 {
				t.Fatal("left running: " + strings.Join(killed, "\n"))
			}
			return
		}
		// Supervisors end by themselves, a moment after their daemon.
		alone := time.Since(begin) < eventLimit/3
		for _, args := range left {
			alone = alone && strings.Contains(args, " supervisor ")
		}
		if alone {
			continue
		}
		for pid, args := range left {
			killed = append(killed, args)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	t.Fatal(fmt.Sprintf("these processes do not end: %v", processes(dir)))
}

// processes are those whose arguments or directory name dir.
func processes(dir string) map[int]string { return boottest.Processes(dir) }

// scriptCommands are the words of the scripts beyond testscript's own.
var scriptCommands = map[string]func(*testscript.TestScript, bool, []string){
	"exits":   exitsCommand,
	"refuses": refusesCommand,
	"await":   awaitCommand,
	"post":    postCommand,
	"until":   untilCommand,
	"flip":    flipCommand,
	"words":   wordsCommand,
	"kill9":   kill9Command,
	"damage":  damageCommand,
	"keep":    keepCommand,

	"hosts":     hostsCommand,
	"on":        onCommand,
	"makeimage": makeimageCommand,
}

// exitsCommand is "exits CODE COMMAND...": the command ends with that code.
func exitsCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG]...")
	}
	if got, want := exitOf(ts, args[1:]), args[0]; want != strconv.Itoa(got) {
		ts.Fatalf("%s exited %d, not %s", strings.Join(args[1:], " "), got, want)
	}
}

// refusesCommand is "refuses EXIT CODE COMMAND...": the command ends with that
// exit code, prints nothing, and tells the problem of that code, behind what it told
// of its progress, with a hint and without a trace of the program's inside.
func refusesCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: refuses EXIT CODE COMMAND [ARG]...")
	}
	exitsCommand(ts, false, append([]string{args[0]}, args[2:]...))
	out, told := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	switch {
	case out != "":
		ts.Fatalf("a refused command printed %q", out)
	case !strings.Contains("\n"+told, "\nerror: ") || !strings.Contains(told, "\nhint: "):
		ts.Fatalf("the refusal has no error or no hint")
	case !strings.Contains(told, "\ncode: "+args[1]+"\n"):
		ts.Fatalf("the refusal's code is not %s", args[1])
	case strings.Contains(told, "goroutine "):
		ts.Fatalf("the refusal shows a stack")
	}
}

func exitOf(ts *testscript.TestScript, argv []string) int {
	argv = program(ts, argv)
	err := ts.Exec(argv[0], argv[1:]...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	ts.Check(err)
	return 0
}

// awaitCommand is "await PATTERN COMMAND...": the command succeeds and prints
// the pattern, now or soon.
func awaitCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: await PATTERN COMMAND [ARG]...")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	argv := program(ts, args[1:])
	for begin := time.Now(); time.Since(begin) < eventLimit; <-time.After(lookAgain) {
		if ts.Exec(argv[0], argv[1:]...) == nil && pattern.MatchString(ts.ReadFile("stdout")) {
			return
		}
	}
	ts.Fatalf("not within %v", eventLimit)
}

var joinLine = regexp.MustCompile(`cluster join --peer (\S+) --token (\S+)`)

// wordsCommand is "words FILE PEER TOKEN": sets both variables to what the line
// for joining in the file says.
func wordsCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: words FILE PEER TOKEN")
	}
	found := joinLine.FindStringSubmatch(ts.ReadFile(args[0]))
	if found == nil {
		ts.Fatalf("there is no line for joining")
	}
	ts.Setenv(args[1], found[1])
	ts.Setenv(args[2], found[2])
}

// keepCommand is "keep VARIABLE PATTERN": sets the variable to what the group of the
// pattern matches in what the last command printed.
func keepCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: keep VARIABLE PATTERN")
	}
	pattern, err := regexp.Compile("(?m)" + args[1])
	ts.Check(err)
	found := pattern.FindStringSubmatch(ts.ReadFile("stdout"))
	if len(found) != 2 {
		ts.Fatalf("nothing printed matches, or the pattern has not one group")
	}
	ts.Setenv(args[0], found[1])
}

// kill9Command is "kill9 DIR [all]": the daemon of that data directory loses its
// life, and with all its supervisors and VMs as well.
func kill9Command(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) == 2 && args[1] != "all" {
		ts.Fatalf("usage: kill9 DIR [all]")
	}
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(filepath.Join(args[0], "lock"))))
	ts.Check(err)
	ts.Check(syscall.Kill(pid, syscall.SIGKILL))
	if len(args) == 1 {
		return
	}
	dir := ts.MkAbs(args[0]) + "/"
	for begin := time.Now(); time.Since(begin) < eventLimit; <-time.After(lookAgain) {
		left := processes(dir)
		if len(left) == 0 {
			return
		}
		for pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	ts.Fatalf("these processes do not end: %v", processes(dir))
}

// damageOffset is inside the first entries of a segment of the log, behind its
// header.
const damageOffset = 4096 + 40

// damageCommand is "damage DIR": one bit in the log of that data directory becomes
// another.
func damageCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: damage DIR")
	}
	segments, err := filepath.Glob(ts.MkAbs(filepath.Join(args[0], "raft", "log", "*.log")))
	ts.Check(err)
	if len(segments) == 0 {
		ts.Fatalf("there is no log in %s", args[0])
	}
	f, err := os.OpenFile(segments[0], os.O_RDWR, 0)
	ts.Check(err)
	defer func() { _ = f.Close() }()
	var b [1]byte
	_, err = f.ReadAt(b[:], damageOffset)
	ts.Check(err)
	b[0] ^= 1
	_, err = f.WriteAt(b[:], damageOffset)
	ts.Check(err)
}

// postCommand is "post SOCKET PATH BODY": what `curl --unix-socket SOCKET -d
// BODY http://x/PATH` sends. It prints the body of the answer, and fails as
// `curl --fail` does.
func postCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: [!] post SOCKET PATH BODY")
	}
	socket := ts.MkAbs(args[0])
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), eventLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://x/"+args[1], strings.NewReader(args[2]))
	ts.Check(err)
	req.Header.Set("User-Agent", "curl/7.88.1")
	req.Header.Set("Accept", "*/*")
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := (&http.Client{Transport: transport}).Do(req)
	ts.Check(err)
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	_, err = ts.Stdout().Write(body)
	ts.Check(err)
	if ok := resp.StatusCode == http.StatusOK; ok == neg {
		ts.Fatalf("the status is %s", resp.Status)
	}
}

// untilCommand is "until PATTERN COMMAND...": the command prints a line with the
// pattern and goes on; then it is interrupted, and ends as one that was.
func untilCommand(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: until PATTERN COMMAND [ARG]...")
	}
	pattern, err := regexp.Compile(args[0])
	ts.Check(err)
	program, err := exec.LookPath(args[1])
	ts.Check(err)
	ctx, cancel := context.WithTimeout(context.Background(), eventLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args[2:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = append(append(os.Environ(), coverEnv()...), "BLIXARD_ADDR="+ts.Getenv("BLIXARD_ADDR"))
	var told strings.Builder
	cmd.Stderr = &told
	out, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	lines, found := bufio.NewReader(out), false
	for !found && err == nil {
		var line string
		line, err = lines.ReadString('\n')
		ts.Logf("%s", line)
		found = pattern.MatchString(line)
	}
	ts.Check(cmd.Process.Signal(os.Interrupt))
	_, _ = io.Copy(io.Discard, lines) // up to the end that the signal brings
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); !found || code != 128+int(syscall.SIGINT) || told.String() != "interrupted by interrupt\n" {
		ts.Fatalf("found: %v; exit code %d; %s", found, code, told.String())
	}
}

// flipCommand is "flip FILE": one bit in its middle becomes another.
func flipCommand(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	data, err := os.ReadFile(path)
	ts.Check(err)
	data[len(data)/2] ^= 1
	ts.Check(os.WriteFile(path, data, 0o600))
}
