package server

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/internal/problem"
)

var update = flag.Bool("update", false, "write testdata/rights.txt anew")

// served are the services of a node; those of supervisors and guests are not.
var served = []string{
	"VMService", "NodeService", "EventService", "AgentService", "ClusterService", "EnrollService", "ForwardService", "PeerService",
	"ImageService", "VolumeService", "NetworkService", "SecretService", "TaskService", "ScheduleService", "QuotaService", "GroupService",
}

// methods of the descriptors, sorted.
func methods(t *testing.T) []string {
	t.Helper()
	var names []string
	protoregistry.GlobalFiles.RangeFilesByPackage("blixard.v1", func(f protoreflect.FileDescriptor) bool {
		for k := range f.Services().Len() {
			s := f.Services().Get(k)
			if !slices.Contains(served, string(s.Name())) {
				continue
			}
			for m := range s.Methods().Len() {
				names = append(names, fmt.Sprintf("/%s/%s", s.FullName(), s.Methods().Get(m).Name()))
			}
		}
		return true
	})
	slices.Sort(names)
	return names
}

// Every method has a rule, and every rule a method: a new RPC without one fails
// here, and is refused to everybody by the interceptor.
func TestEveryMethodHasARule(t *testing.T) {
	all := methods(t)
	if len(all) == 0 {
		t.Fatal("no methods were found")
	}
	for _, m := range all {
		if r, ok := rules[m]; !ok || r.route == 0 {
			t.Errorf("%s has no rule", m)
		}
	}
	for m := range rules {
		if !slices.Contains(all, m) {
			t.Errorf("the rule of %s has no method", m)
		}
	}
	if err := (&Server{}).allow(caller{role: auth.RoleOperator}, rule{}, "/x/None"); !problem.Is(err, problem.Denied) {
		t.Errorf("a method without a rule: %v", err)
	}
}

// identities that a connection can prove. A certificate of another cluster and
// one of a removed node are refused at the handshake, before any rule
// (TestHandshakes and TestRemovedNodeIsRefused in auth).
var identities = []struct {
	name string
	c    caller
}{
	{"nobody", caller{actor: "nobody"}},
	{"viewer", caller{role: auth.RoleViewer, name: "v", actor: "viewer:v"}},
	{"operator", caller{role: auth.RoleOperator, name: "o", actor: "operator:o"}},
	{"socket", caller{role: auth.RoleOperator, name: "user:1000", actor: "user:1000"}},
	{"daemon", caller{role: auth.RoleOperator, name: "user:0", actor: "user:0", agent: true}},
	{"node", caller{role: auth.RoleNode, name: "node-b", actor: "node:node-b"}},
	{"viewer via node", caller{role: auth.RoleViewer, name: "v", actor: "viewer:v", via: "node-b"}},
	{"operator via node", caller{role: auth.RoleOperator, name: "o", actor: "operator:o", via: "node-b"}},
	{"nobody via node", caller{actor: "nobody", via: "node-b"}},
	{"node via node", caller{role: auth.RoleNode, name: "node-b", actor: "node:node-b", via: "node-b"}},
}

// The matrix of every method by every identity.
func TestRights(t *testing.T) {
	var b strings.Builder
	s := &Server{}
	for _, m := range methods(t) {
		var may []string
		for _, id := range identities {
			if s.allow(id.c, rules[m], m) == nil {
				may = append(may, id.name)
			}
		}
		fmt.Fprintf(&b, "%s: %s\n", strings.TrimPrefix(m, "/blixard.v1."), strings.Join(may, ", "))
	}
	file := filepath.Join("testdata", "rights.txt")
	if *update {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if b.String() != string(want) {
		t.Errorf("the rights are not those of %s (-update writes it):\n%s", file, b.String())
	}
}

// A node speaks for itself and for people, never for another node.
func TestSpeaksFor(t *testing.T) {
	s := &Server{cfg: Config{NodeID: "node-a", Nodes: noNodes{}}}
	for _, tc := range []struct {
		c    caller
		node string
		ok   bool
	}{
		{caller{role: auth.RoleNode, name: "node-b"}, "node-b", true},
		{caller{role: auth.RoleNode, name: "node-b"}, "node-c", false},
		{caller{role: auth.RoleOperator, agent: true}, "node-a", true},
		{caller{role: auth.RoleOperator, agent: true}, "node-b", false},
		{caller{role: auth.RoleOperator}, "node-a", false},
		{caller{}, "node-a", false},
	} {
		err := s.speaksFor(context.WithValue(t.Context(), callerKey{}, tc.c), tc.node)
		if (err == nil) != tc.ok {
			t.Errorf("%+v for %s: %v", tc.c, tc.node, err)
		}
	}
}

// What another node says of the caller is passed on as it is.
func TestPassedOn(t *testing.T) {
	s := &Server{cfg: Config{NodeID: "node-a"}}
	ctx := context.WithValue(t.Context(), callerKey{}, caller{role: auth.RoleViewer, name: "v", actor: "viewer:v"})
	md, _ := metadata.FromOutgoingContext(s.outgoing(ctx))
	for key, want := range map[string]string{metaActor: "viewer:v", metaRole: "viewer", metaName: "v", metaHop: "node-a"} {
		if got := md.Get(key); len(got) != 1 || got[0] != want {
			t.Errorf("%s is %v", key, got)
		}
	}
	ctx = context.WithValue(t.Context(), callerKey{}, caller{role: auth.RoleOperator, agent: true, asNode: true})
	md, _ = metadata.FromOutgoingContext(s.outgoing(ctx))
	if len(md.Get(metaActor)) != 0 {
		t.Error("the node's own call names an actor")
	}
}

// noNodes reaches nobody.
type noNodes struct{}

func (noNodes) Conn(string) (*grpc.ClientConn, error) {
	return nil, problem.New(problem.Unavailable, "node.unreachable", "no node is there")
}
func (noNodes) Reachable(string) bool { return false }
