package auth

import (
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/blixard/blixard/internal/problem"
)

// Role is what a certificate says its holder is.
type Role string

// The roles of certificates.
const (
	// RoleNode is a member of the cluster.
	RoleNode Role = "node"
	// RoleOperator may do everything that people do.
	RoleOperator Role = "operator"
	// RoleViewer may look at everything and change nothing.
	RoleViewer Role = "viewer"
)

var roles = []Role{RoleNode, RoleOperator, RoleViewer}

// Identity is the one name in a certificate:
// blixard://CLUSTER/ROLE/NAME.
type Identity struct {
	ClusterID string
	Role      Role
	// Name is a node's id or a person's name.
	Name string
}

const identityScheme = "blixard"

var identityWord = regexp.MustCompile(`^[a-z0-9][-a-z0-9_.@]{0,63}$`)

// URI gives the name as it stands in a certificate.
func (i Identity) URI() *url.URL {
	return &url.URL{Scheme: identityScheme, Host: i.ClusterID, Path: "/" + string(i.Role) + "/" + i.Name}
}

// Actor names the holder in events: "node:ID", "operator:NAME".
func (i Identity) Actor() string { return string(i.Role) + ":" + i.Name }

// check holds the parts against what a name may be.
func (i Identity) check() error {
	if !identityWord.MatchString(i.ClusterID) || !identityWord.MatchString(i.Name) || !slices.Contains(roles, i.Role) {
		return problem.New(problem.Invalid, "auth.identity", "%q is no identity of blixard", i.URI())
	}
	return nil
}

// ParseIdentity reads the name of a certificate. It takes the exact form only.
func ParseIdentity(u *url.URL) (Identity, error) {
	role, name, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	i := Identity{ClusterID: u.Host, Role: Role(role), Name: name}
	if err := i.check(); err != nil || !ok || u.String() != i.URI().String() {
		return Identity{}, problem.New(problem.Denied, "auth.identity", "%q is no identity of blixard", u).
			WithHint("certificates come from `blixard cluster join`")
	}
	return i, nil
}
