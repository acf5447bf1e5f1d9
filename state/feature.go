package state

import (
	"google.golang.org/protobuf/reflect/protoreflect"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// FeatureLevel is the newest that this binary knows. It grows by one with every
// command, or field of a command, that older binaries would apply differently.
//
//	2  recover a cluster, rotate and drop authorities
const FeatureLevel = 2

// levels of the changes of a command that came after level 1, by the name of
// their field.
var levels = map[protoreflect.Name]uint32{
	"recover_cluster": 2, "rotate_authority": 2, "drop_authorities": 2,
}

// Level that every member must know before cmd may be proposed.
func Level(cmd *blixardv1.Command) uint32 {
	m := cmd.ProtoReflect()
	field := m.WhichOneof(m.Descriptor().Oneofs().ByName("change"))
	if field == nil {
		return 1
	}
	return max(levels[field.Name()], 1)
}

// FeatureLevel is the oldest member's; without members it is this binary's.
func (v *View) FeatureLevel() uint32 {
	level := uint32(FeatureLevel)
	for _, m := range v.Members() {
		if !m.GetRemoved() {
			level = min(level, m.GetFeatureLevel())
		}
	}
	return level
}
