package daemon_test

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// TestSecretsAreNowhereInClear: what a secret's VM reads is in no file of the node, in
// no process's arguments or environment, and in no answer, before and after a
// snapshot, a restart and the end of the VM.
func TestSecretsAreNowhereInClear(t *testing.T) {
	n := startNode(t)
	first, second, canary := "first-"+rand.Text(), "second-"+rand.Text(), "canary-"+strings.ToLower(rand.Text())
	n.setSecret("token", first)
	n.create("a", func(s *blixardv1.VMSpec) {
		s.Secrets = []*blixardv1.SecretAttachment{{Secret: "token"}, {Secret: "token", Path: "/etc/app/token"}}
		s.Command = []string{"sh", "-c", "echo its length is $(wc -c </run/secrets/token); exec sleep 1000000"}
	})
	n.awaitRunning("a")
	reads := func(want string) {
		t.Helper()
		if out, err := n.exec("a", "cat", "/run/secrets/token", "/etc/app/token"); err != nil || out != want+want {
			t.Fatalf("the VM reads %q, %v", out, err)
		}
	}
	reads(first)
	// The search finds what is there: a label and what a guest prints.
	if err := n.label("a", canary); err != nil {
		t.Fatal(err)
	}
	if len(n.searchFor(canary)) == 0 {
		t.Error("the search does not find a label in the log of changes")
	}
	if len(n.searchFor("its length is "+strconv.Itoa(len(first)))) == 0 {
		t.Error("the search does not find what the guest prints")
	}
	n.nowhere("while the VM runs", first)
	n.blixard("cluster", "compact")
	n.nowhere("after a snapshot", first)
	n.setSecret("token", second)
	reads(first)
	n.kill9()
	n.nowhere("while the daemon is dead", first, second)
	n.start()
	n.blixard("vm", "restart", "a")
	reads(second)
	n.nowhere("after a restart", first, second)
	for _, args := range [][]string{
		{"secret", "list", "-o", "json"}, {"vm", "show", "a", "-o", "json"}, {"vm", "logs", "a"}, {"node", "status", "-o", "json"}, {"cluster", "status", "-o", "json"},
	} {
		if out := n.blixard(args...); strings.Contains(out, first) || strings.Contains(out, second) {
			t.Errorf("%v shows it:\n%s", args, out)
		}
	}
	n.delete("a")
	n.blixard("secret", "delete", "token")
	n.blixard("cluster", "compact")
	n.nowhere("in the end", first, second)
}

func (n *node) setSecret(name, value string) {
	n.t.Helper()
	cmd := n.command("secret", "set", name)
	cmd.Stdin = strings.NewReader(value)
	if out, err := cmd.CombinedOutput(); err != nil {
		n.t.Fatalf("secret set: %v\n%s", err, out)
	}
}

// nowhere wants none of the texts to be found.
func (n *node) nowhere(when string, texts ...string) {
	n.t.Helper()
	for _, text := range texts {
		for _, place := range n.searchFor(text) {
			n.t.Errorf("%s, a secret is in %s", when, place)
		}
	}
}

// searchFor gives the files of the node, and of its processes, that have a text, also
// in one of the ways it could be written in.
func (n *node) searchFor(text string) []string {
	n.t.Helper()
	var forms [][]byte
	forms = append(forms, []byte(text), []byte(hex.EncodeToString([]byte(text))))
	for skip := range 3 {
		// In the middle of a longer one the text begins at any of three places.
		part := text[skip:]
		forms = append(forms, []byte(base64.StdEncoding.EncodeToString([]byte(part[:len(part)/3*3]))))
	}
	var found []string
	look := func(path string) {
		content, err := os.ReadFile(path)
		if err != nil {
			return // a process or a file that is gone
		}
		for _, form := range forms {
			if bytes.Contains(content, form) {
				found = append(found, path)
				return
			}
		}
	}
	err := filepath.WalkDir(n.dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			look(path)
		}
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
	for pid := range n.processes() {
		for _, name := range []string{"cmdline", "environ", "comm"} {
			look(filepath.Join("/proc", strconv.Itoa(pid), name))
		}
	}
	return found
}
