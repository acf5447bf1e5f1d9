package server

import (
	"context"
	"os"
	"slices"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/internal/problem"
)

// route is where a call is answered.
type route int

const (
	// here: by the node that is asked.
	here route = iota + 1
	// toLeader: by the node that leads.
	toLeader
	// toVM: by the node that has the VM of the request's name.
	toVM
	// toVolume: by the node that has the volume of the request's name.
	toVolume
	// toTask: by the node that has the output of the request's task.
	toTask
)

// rule of one method: who may call it, and where it is answered.
type rule struct {
	route route
	who   []auth.Role
	// agent: the own user of the socket may, and nobody else on it. who says which
	// certificates may.
	agent bool
	// anyone may, with or without a certificate: the request itself proves a right.
	anyone bool
	// internal: only nodes, never for somebody else.
	internal bool
}

var (
	look    = []auth.Role{auth.RoleViewer, auth.RoleOperator}
	operate = []auth.Role{auth.RoleOperator}
	member  = []auth.Role{auth.RoleNode}
)

// rules has one rule for every method; a method without one is refused to all,
// and a test fails.
var rules = map[string]rule{
	"/blixard.v1.VMService/CreateVM":  {route: toLeader, who: operate},
	"/blixard.v1.VMService/GetVM":     {route: here, who: look},
	"/blixard.v1.VMService/ExplainVM": {route: here, who: look},
	"/blixard.v1.VMService/MoveVM":    {route: toLeader, who: operate},
	"/blixard.v1.VMService/ListVMs":   {route: here, who: look},
	"/blixard.v1.VMService/StartVM":   {route: toLeader, who: operate},
	"/blixard.v1.VMService/StopVM":    {route: toLeader, who: operate},
	"/blixard.v1.VMService/RestartVM": {route: toLeader, who: operate},
	"/blixard.v1.VMService/DeleteVM":  {route: toLeader, who: operate},
	"/blixard.v1.VMService/LabelVM":   {route: toLeader, who: operate},
	"/blixard.v1.VMService/LabelVMs":  {route: toLeader, who: operate},
	"/blixard.v1.VMService/WatchVMs":  {route: here, who: look},
	"/blixard.v1.VMService/Logs":      {route: toVM, who: look},
	"/blixard.v1.VMService/Console":   {route: toVM, who: operate},
	"/blixard.v1.VMService/Exec":      {route: toVM, who: operate},
	"/blixard.v1.VMService/Attach":    {route: toVM, who: operate},
	"/blixard.v1.VMService/Stats":     {route: toVM, who: look},
	"/blixard.v1.VMService/UpdateVM":  {route: toLeader, who: operate},
	"/blixard.v1.VMService/RenameVM":  {route: toLeader, who: operate},
	"/blixard.v1.VMService/Copy":      {route: toVM, who: operate},
	"/blixard.v1.VMService/Forward":   {route: toVM, who: operate},
	"/blixard.v1.VMService/Top":       {route: toVM, who: look},

	"/blixard.v1.ImageService/PullImage":     {route: here, who: operate},
	"/blixard.v1.ImageService/ImportImage":   {route: here, who: operate},
	"/blixard.v1.ImageService/ListImages":    {route: here, who: look},
	"/blixard.v1.ImageService/GetImage":      {route: here, who: look},
	"/blixard.v1.ImageService/RemoveImage":   {route: toLeader, who: operate},
	"/blixard.v1.ImageService/PruneImages":   {route: toLeader, who: operate},
	"/blixard.v1.ImageService/RegisterImage": {route: toLeader, who: member, agent: true},
	"/blixard.v1.ImageService/FetchImage":    {route: here, who: member, internal: true},

	"/blixard.v1.VolumeService/CreateVolume":         {route: toLeader, who: operate},
	"/blixard.v1.VolumeService/ListVolumes":          {route: here, who: look},
	"/blixard.v1.VolumeService/GetVolume":            {route: toVolume, who: look},
	"/blixard.v1.VolumeService/ResizeVolume":         {route: toVolume, who: operate},
	"/blixard.v1.VolumeService/DeleteVolume":         {route: toLeader, who: operate},
	"/blixard.v1.VolumeService/SnapshotVolume":       {route: toVolume, who: operate},
	"/blixard.v1.VolumeService/RestoreVolume":        {route: toVolume, who: operate},
	"/blixard.v1.VolumeService/DeleteVolumeSnapshot": {route: toVolume, who: operate},
	"/blixard.v1.VolumeService/CloneVolume":          {route: toVolume, who: operate},
	"/blixard.v1.VolumeService/MoveVolume":           {route: toVolume, who: operate},
	"/blixard.v1.VolumeService/ReceiveVolume":        {route: here, who: member, internal: true},
	"/blixard.v1.VolumeService/RegisterVolume":       {route: toLeader, who: member, agent: true},

	"/blixard.v1.NetworkService/CreateNetwork": {route: toLeader, who: operate},
	"/blixard.v1.NetworkService/ListNetworks":  {route: here, who: look},
	"/blixard.v1.NetworkService/GetNetwork":    {route: here, who: look},
	"/blixard.v1.NetworkService/DeleteNetwork": {route: toLeader, who: operate},
	"/blixard.v1.NetworkService/UpdateNetwork": {route: toLeader, who: operate},
	"/blixard.v1.NetworkService/CheckNetwork":  {route: here, who: operate},

	"/blixard.v1.SecretService/SetSecret":    {route: toLeader, who: operate},
	"/blixard.v1.SecretService/ListSecrets":  {route: here, who: operate},
	"/blixard.v1.SecretService/DeleteSecret": {route: toLeader, who: operate},

	"/blixard.v1.TaskService/SubmitTask": {route: toLeader, who: operate},
	"/blixard.v1.TaskService/GetTask":    {route: here, who: look},
	"/blixard.v1.TaskService/ListTasks":  {route: here, who: look},
	"/blixard.v1.TaskService/WatchTasks": {route: here, who: look},
	"/blixard.v1.TaskService/CancelTask": {route: toLeader, who: operate},
	"/blixard.v1.TaskService/RetryTask":  {route: toLeader, who: operate},
	"/blixard.v1.TaskService/RemoveTask": {route: toLeader, who: operate},
	"/blixard.v1.TaskService/TaskLogs":   {route: toTask, who: look},

	"/blixard.v1.TaskService/TaskArtifacts": {route: toTask, who: look},

	"/blixard.v1.ScheduleService/CreateSchedule": {route: toLeader, who: operate},
	"/blixard.v1.ScheduleService/GetSchedule":    {route: here, who: look},
	"/blixard.v1.ScheduleService/ListSchedules":  {route: here, who: look},
	"/blixard.v1.ScheduleService/UpdateSchedule": {route: toLeader, who: operate},
	"/blixard.v1.ScheduleService/PauseSchedule":  {route: toLeader, who: operate},
	"/blixard.v1.ScheduleService/ResumeSchedule": {route: toLeader, who: operate},
	"/blixard.v1.ScheduleService/RunSchedule":    {route: toLeader, who: operate},
	"/blixard.v1.ScheduleService/RemoveSchedule": {route: toLeader, who: operate},

	"/blixard.v1.GroupService/CreateGroup":  {route: toLeader, who: operate},
	"/blixard.v1.GroupService/GetGroup":     {route: here, who: look},
	"/blixard.v1.GroupService/ListGroups":   {route: here, who: look},
	"/blixard.v1.GroupService/WatchGroups":  {route: here, who: look},
	"/blixard.v1.GroupService/UpdateGroup":  {route: toLeader, who: operate},
	"/blixard.v1.GroupService/ScaleGroup":   {route: toLeader, who: operate},
	"/blixard.v1.GroupService/RolloutGroup": {route: toLeader, who: operate},
	"/blixard.v1.GroupService/UndoGroup":    {route: toLeader, who: operate},
	"/blixard.v1.GroupService/DeleteGroup":  {route: toLeader, who: operate},

	"/blixard.v1.QuotaService/SetQuota":    {route: toLeader, who: operate},
	"/blixard.v1.QuotaService/GetQuota":    {route: here, who: look},
	"/blixard.v1.QuotaService/ListQuotas":  {route: here, who: look},
	"/blixard.v1.QuotaService/QuotaUsage":  {route: here, who: look},
	"/blixard.v1.QuotaService/RemoveQuota": {route: toLeader, who: operate},

	"/blixard.v1.NodeService/ListNodes":  {route: here, who: look},
	"/blixard.v1.NodeService/GetStatus":  {route: here, who: look},
	"/blixard.v1.NodeService/UpdateNode": {route: toLeader, who: operate},
	"/blixard.v1.NodeService/Simulate":   {route: here, who: look},
	"/blixard.v1.NodeService/PlanDrain":  {route: here, who: look},

	"/blixard.v1.EventService/ListEvents":  {route: here, who: look},
	"/blixard.v1.EventService/WatchEvents": {route: here, who: look},

	"/blixard.v1.AgentService/Register":         {route: toLeader, who: member, agent: true},
	"/blixard.v1.AgentService/WatchAllocations": {route: here, agent: true},
	"/blixard.v1.AgentService/Report":           {route: toLeader, who: member, agent: true},
	"/blixard.v1.AgentService/RenewLease":       {route: toLeader, who: member, agent: true},
	"/blixard.v1.AgentService/RevealSecrets":    {route: toLeader, who: member, agent: true},

	"/blixard.v1.ClusterService/GetCluster":      {route: here, who: append(slices.Clone(look), auth.RoleNode)},
	"/blixard.v1.ClusterService/CreateToken":     {route: toLeader, who: operate},
	"/blixard.v1.ClusterService/ListTokens":      {route: here, who: operate},
	"/blixard.v1.ClusterService/RevokeToken":     {route: toLeader, who: operate},
	"/blixard.v1.ClusterService/ChangeMember":    {route: toLeader, who: operate},
	"/blixard.v1.ClusterService/RemoveMember":    {route: toLeader, who: operate},
	"/blixard.v1.ClusterService/DrainNode":       {route: toLeader, who: operate},
	"/blixard.v1.ClusterService/GetSettings":     {route: here, who: look},
	"/blixard.v1.ClusterService/ChangeSettings":  {route: toLeader, who: operate},
	"/blixard.v1.ClusterService/TransferLeader":  {route: toLeader, who: operate},
	"/blixard.v1.ClusterService/Compact":         {route: here, who: operate},
	"/blixard.v1.ClusterService/GetAuthorities":  {route: here, who: look},
	"/blixard.v1.ClusterService/RotateAuthority": {route: toLeader, who: operate},
	"/blixard.v1.ClusterService/DropAuthorities": {route: toLeader, who: operate},
	"/blixard.v1.ClusterService/Join":            {route: here, who: operate},
	"/blixard.v1.ClusterService/Leave":           {route: here, who: operate},

	"/blixard.v1.EnrollService/Enroll":           {route: toLeader, anyone: true},
	"/blixard.v1.EnrollService/RenewCertificate": {route: toLeader, who: []auth.Role{auth.RoleNode, auth.RoleOperator, auth.RoleViewer}},
	"/blixard.v1.EnrollService/IssueCertificate": {route: toLeader, who: operate},

	"/blixard.v1.ForwardService/Calls": {route: here, who: member, internal: true},

	"/blixard.v1.PeerService/Messages": {route: here, who: member, internal: true},
	"/blixard.v1.PeerService/Snapshot": {route: here, who: member, internal: true},
}

// caller is who asks, as far as the connection proves it.
type caller struct {
	// role is empty for one that proved nothing.
	role auth.Role
	// name is a node's id, a person's name or a user's number.
	name string
	// actor for events.
	actor string
	// agent: the daemon's own user on the socket speaks for this node.
	agent bool
	// asNode: it calls as the agent does.
	asNode bool
	// via is the node that asks for the caller, empty when it asks itself.
	via string
}

// Metadata of a call that a node passes on: who asked it, and as what. It counts
// only on a connection of a node of the cluster.
const (
	metaActor = "blixard-actor"
	metaRole  = "blixard-role"
	metaName  = "blixard-name"
)

func denied(code, format string, args ...any) *problem.Error {
	return problem.New(problem.Denied, code, format, args...)
}

// identify finds the caller of a connection.
func (s *Server) identify(ctx context.Context) (caller, error) {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			return s.identifyTLS(ctx, info)
		}
	}
	local, err := s.cfg.Policy.Check(ctx)
	if err != nil {
		return caller{}, err
	}
	return caller{role: auth.RoleOperator, name: local.Actor(), actor: local.Actor(), agent: local.UID == uint32(os.Geteuid())}, nil
}

func (s *Server) identifyTLS(ctx context.Context, info credentials.TLSInfo) (caller, error) {
	if s.cfg.Trust == nil {
		return caller{}, denied("auth.unknown_caller", "this node takes calls on its socket only")
	}
	id, ok, err := s.cfg.Trust.Caller(info.State)
	if err != nil {
		return caller{}, err
	}
	if !ok {
		return caller{actor: "nobody"}, nil
	}
	c := caller{role: id.Role, name: id.Name, actor: id.Actor()}
	if id.Role != auth.RoleNode {
		return c, nil
	}
	if actors := metadata.ValueFromIncomingContext(ctx, metaActor); len(actors) == 1 {
		c = caller{actor: actors[0], via: id.Name}
		if roles := metadata.ValueFromIncomingContext(ctx, metaRole); len(roles) == 1 {
			c.role = auth.Role(roles[0])
		}
		if names := metadata.ValueFromIncomingContext(ctx, metaName); len(names) == 1 {
			c.name = names[0]
		}
		if c.role == auth.RoleNode && c.name != id.Name {
			return caller{}, denied("auth.other_node", "node %s can't speak for node %s", id.Name, c.name)
		}
	}
	return c, nil
}

// authorize refuses callers that no rule allows.
func (s *Server) authorize(ctx context.Context, method string) (caller, rule, error) {
	c, err := s.identify(ctx)
	if err != nil {
		return c, rule{}, err
	}
	r, ok := rules[method]
	if !ok {
		return c, r, denied("auth.no_rule", "nobody may call %s", method)
	}
	c.asNode = r.agent && c.agent
	return c, r, s.allow(c, r, method)
}

func (s *Server) allow(c caller, r rule, method string) error {
	short := method[strings.LastIndexByte(method, '/')+1:]
	switch {
	case r.anyone:
		return nil
	case c.role == "":
		return denied("auth.no_certificate", "%s needs a certificate of this cluster", short).
			WithHint("use the node's socket, or name a certificate with --credentials (see `blixard cluster credentials --help`)")
	case r.agent && c.agent, slices.Contains(r.who, c.role) && !(r.internal && c.via != "") && !(r.agent && c.role != auth.RoleNode):
		return nil
	case r.agent:
		return denied("auth.agent_only", "%s is for the agents of nodes", short).WithHint("use the commands of `blixard vm`")
	case c.role == auth.RoleNode:
		return denied("auth.node", "a node's certificate does not allow %s", short).
			WithHint("people use the node's socket, or certificates of their own")
	}
	return denied("auth.role", "role %s does not allow %s", c.role, short).WithHint("ask an operator of the cluster")
}

// speaksFor refuses an agent that speaks for another node than its own.
func (s *Server) speaksFor(ctx context.Context, nodeID string) error {
	c := callerOf(ctx)
	if c.agent && nodeID == s.cfg.NodeID || c.agent && s.cfg.Nodes == nil || c.role == auth.RoleNode && c.name == nodeID {
		return nil
	}
	return denied("auth.other_node", "%s can't speak for node %s", c.actor, nodeID)
}

type callerKey struct{}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// passedOn is the metadata by which another node learns who asks.
func (s *Server) passedOn(ctx context.Context) context.Context {
	c := callerOf(ctx)
	if c.asNode {
		return ctx // the node asks for itself, and its certificate says so
	}
	return metadata.AppendToOutgoingContext(ctx, metaActor, c.actor, metaRole, string(c.role), metaName, c.name)
}

// CallerNode is the id of the node whose certificate the caller of a method
// showed; empty when it is no node.
func (s *Server) CallerNode(ctx context.Context) string {
	if c := callerOf(ctx); c.role == auth.RoleNode && c.via == "" {
		return c.name
	}
	return ""
}
