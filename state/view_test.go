package state

import (
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

func TestEventFits(t *testing.T) {
	at := func(second int64) *timestamppb.Timestamp { return timestamppb.New(time.Unix(second, 0)) }
	v := &View{events: []*blixardv1.Event{
		{Index: 1, Kind: "vm.created", ObjectId: "vm-1", ObjectName: "web", Actor: "user:0", Time: at(10)},
		{Index: 2, Kind: "allocation.placed", ObjectId: "alloc-1", ObjectName: "web", Node: "n1", Actor: "leader:n1", Time: at(20)},
		{Index: 3, Kind: "allocations", ObjectId: "x", ObjectName: "db", Node: "n2", Actor: "leader:n1", Time: at(30)},
		{Index: 4, Kind: "allocation.lost", ObjectId: "alloc-1", ObjectName: "web", Node: "n2", Actor: "user:01", Time: at(40)},
	}}
	projects := &View{events: []*blixardv1.Event{
		{Index: 5, Kind: "vm.created", ObjectKind: "vm", ObjectName: "shop/web"},
		{Index: 6, Kind: "quota.set", ObjectKind: "quota", ObjectName: "shop"},
		{Index: 7, Kind: "allocation.lost", ObjectKind: "allocation", ObjectName: "shop/web"},
		{Index: 8, Kind: "group.created", ObjectKind: "group", ObjectName: "crew"},
		{Index: 9, Kind: "node.down", ObjectKind: "node", ObjectName: "n1"},
		{Index: 10, Kind: "image.imported", ObjectKind: "image", ObjectName: "shop/image"},
		{Index: 11, Kind: "volume.created", ObjectKind: "volume", ObjectName: "goods", Project: "shop"},
		{Index: 12, Kind: "volume.created", ObjectKind: "volume", ObjectName: "data"},
	}}
	for name, tc := range map[string]struct {
		filter *blixardv1.EventFilter
		limit  int
		want   []uint64
	}{
		"all":               {want: []uint64{1, 2, 3, 4}},
		"the newest":        {limit: 2, want: []uint64{3, 4}},
		"an object by name": {filter: &blixardv1.EventFilter{Object: "web"}, want: []uint64{1, 2, 4}},
		"an object by id":   {filter: &blixardv1.EventFilter{Object: "alloc-1"}, limit: 1, want: []uint64{4}},
		"a kind":            {filter: &blixardv1.EventFilter{Kinds: []string{"allocation.lost"}}, want: []uint64{4}},
		"kinds":             {filter: &blixardv1.EventFilter{Kinds: []string{"allocation", "vm"}}, want: []uint64{1, 2, 4}},
		"half a word":       {filter: &blixardv1.EventFilter{Kinds: []string{"alloc"}}},
		"a node":            {filter: &blixardv1.EventFilter{Node: "n2"}, want: []uint64{3, 4}},
		"an actor":          {filter: &blixardv1.EventFilter{Actor: "user:0"}, want: []uint64{1}},
		"actors":            {filter: &blixardv1.EventFilter{Actor: "leader"}, want: []uint64{2, 3}},
		"since":             {filter: &blixardv1.EventFilter{Since: at(30)}, want: []uint64{3, 4}},
		"several":           {filter: &blixardv1.EventFilter{Object: "web", Kinds: []string{"allocation"}, Node: "n1", Actor: "leader", Since: at(1)}, want: []uint64{2}},
		"a project":         {filter: &blixardv1.EventFilter{Project: "shop"}, want: []uint64{5, 6, 7, 11}},
		"the first project": {filter: &blixardv1.EventFilter{Project: "default", Kinds: []string{"vm", "group", "volume"}}, want: []uint64{8, 12}},
		"no such project":   {filter: &blixardv1.EventFilter{Project: "n1"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []uint64
			of := v
			if tc.filter.GetProject() != "" {
				of = projects
			}
			for _, e := range of.Events(tc.filter, tc.limit) {
				got = append(got, e.GetIndex())
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %v", got)
			}
		})
	}
}
