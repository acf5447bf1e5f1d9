package state

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"
	"pgregory.net/rapid"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// guestsLife draws commands about VMs and what they are made of, with few names, so
// that they meet.
func guestsLife(t *rapid.T, st *story) string {
	pick := func(name string, of ...string) string { return rapid.SampledFrom(of).Draw(t, name) }
	n := rapid.IntRange(1, 6).Draw(t, "vm")
	vm := fmt.Sprintf("v%d", n)
	spec := func() string {
		s := fmt.Sprintf(`image: "r/a:1" vcpus: %d memory_mib: %d disk_bytes: 10`, rapid.IntRange(1, 2).Draw(t, "vcpus"), rapid.IntRange(64, 66).Draw(t, "memory"))
		for _, net := range []string{"na", "nb", "user"} {
			if rapid.Bool().Draw(t, net) {
				s += fmt.Sprintf(" networks {network: %q}", net)
			}
		}
		if rapid.Bool().Draw(t, "published") {
			s += fmt.Sprintf(" ports {host_port: %d guest_port: 80}", rapid.IntRange(1, 3).Draw(t, "port"))
		}
		if rapid.Bool().Draw(t, "volume") {
			s += fmt.Sprintf(" volumes {volume: %q path: \"/a\" read_only: %v}", pick("which", "d1", "d2", "d3"), rapid.Bool().Draw(t, "ro"))
		}
		return s
	}
	switch rapid.IntRange(0, 12).Draw(t, "op") {
	case 0, 1, 2:
		return fmt.Sprintf("create_vm {id: %q name: %q project: %q spec {%s}}", fmt.Sprintf("id-%d-%d", n, st.index), vm, pick("project", "", "default", "p"), spec())
	case 3:
		return fmt.Sprintf("update_vm {name: %q spec {%s}}", vm, spec())
	case 4:
		return fmt.Sprintf("delete_vm {name: %q}", vm)
	case 5:
		v := st.s.View().VM(vm)
		return fmt.Sprintf("place {placements {vm_id: %q allocation_id: \"al-%d\" node_id: %q vm_modify_index: %d}}", v.GetId(), st.index, pick("node", "n1", "n2"), v.GetModifyIndex())
	case 6:
		return fmt.Sprintf("rename_vm {name: %q new_name: %q}", vm, fmt.Sprintf("v%d", rapid.IntRange(1, 6).Draw(t, "new")))
	case 7, 10, 11, 12:
		return volumesLife(t, st)
	case 8:
		return pick("network op", `create_network {network {id: "net-a" name: "na" type: nat ipv4_subnet: "10.64.0.0/29"}}`,
			`create_network {network {id: "net-b" name: "nb" type: nat ipv4_subnet: "10.65.0.0/29" ipv6_subnet: "fd00:0:0:1::/64"}}`,
			`create_network {network {id: "net-u" name: "user" type: user}}`, `delete_network {name: "na"}`, `delete_network {name: "nb"}`)
	}
	for _, a := range st.s.View().Allocations() {
		if a.GetVmName() == vm {
			if rapid.Bool().Draw(t, "gone") {
				return fmt.Sprintf("report {node_id: %q reports {allocation_id: %q epoch: %d removed: true}}", a.GetNodeId(), a.GetId(), a.GetEpoch())
			}
			return fmt.Sprintf("report {node_id: %q reports {allocation_id: %q epoch: %d status {state: %s}}}", a.GetNodeId(), a.GetId(), a.GetEpoch(), pick("state", "preparing", "running", "stopped"))
		}
	}
	return fmt.Sprintf("set_vm_desired {name: %q desired: %s}", vm, pick("desired", "run", "stop"))
}

// volumesLife draws commands about volumes, some too large for a node beside the others.
func volumesLife(t *rapid.T, st *story) string {
	pick := func(name string, of ...string) string { return rapid.SampledFrom(of).Draw(t, name) }
	n, size := pick("volume", "1", "2", "3"), rapid.SampledFrom([]int{5, 20, 40, 60}).Draw(t, "size")
	v := st.s.View().Volume("vol-" + n)
	switch rapid.IntRange(0, 4).Draw(t, "volume op") {
	case 0:
		return fmt.Sprintf("create_volume {id: \"vol-%s\" name: \"d%s\" size_bytes: %d node_id: %q project: %q}", n, n, size, pick("on", "", "n1", "n2"), pick("project", "", "p"))
	case 1:
		return fmt.Sprintf("resize_volume {name: \"d%s\" size_bytes: %d}", n, size)
	case 2:
		return fmt.Sprintf("move_volume {volume_id: \"vol-%s\" from_node_id: %q to_node_id: %q epoch: %d}", n, v.GetNodeId(), pick("to", "n1", "n2"), v.GetEpoch())
	case 3:
		return fmt.Sprintf("delete_volume {name: \"d%s\"}", n)
	}
	return fmt.Sprintf("release_volume {volume_id: \"vol-%s\" node_id: %q}", n, pick("by", "n1", "n2"))
}

// checkRoom counts what nodes have of VMs and volumes again, and that it is no more than
// there is.
func checkRoom(t *rapid.T, v *View) {
	volumes := map[string]uint64{}
	for _, o := range v.Volumes() {
		volumes[o.GetNodeId()] += o.GetSizeBytes()
	}
	disks := map[string]uint64{}
	for _, a := range v.Allocations() {
		disks[a.GetNodeId()] += a.GetSpec().GetDiskBytes()
	}
	for _, n := range v.Nodes() {
		if n.GetVolumeBytes() != volumes[n.GetId()] {
			t.Fatalf("node %s has %d bytes of volumes, the volumes say %d", n.GetId(), n.GetVolumeBytes(), volumes[n.GetId()])
		}
		got := Reserved(n).GetDiskBytes()
		if got != volumes[n.GetId()]+disks[n.GetId()] {
			t.Fatalf("node %s gives %d bytes, its VMs have %d and its volumes %d", n.GetId(), got, disks[n.GetId()], volumes[n.GetId()])
		}
		if got > n.GetAllocatable().GetDiskBytes() {
			t.Fatalf("node %s gives %d bytes of %d", n.GetId(), got, n.GetAllocatable().GetDiskBytes())
		}
	}
}

func parse(t *rapid.T, text string) *blixardv1.Command {
	cmd := &blixardv1.Command{}
	if err := prototext.Unmarshal([]byte(text), cmd); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return cmd
}

// checkGiven holds what is given out: no address and no port twice, one writer or many
// readers of a volume, all where its volume is, and the claims those of the VMs.
func checkGiven(t *rapid.T, v *View) {
	addresses, ports, names := map[string]string{}, map[string]string{}, map[string]string{}
	claims := map[string]string{}
	users := map[string][]string{}
	for _, vm := range v.VMs("", 0) {
		if other := names[vm.GetName()]; other != "" {
			t.Fatalf("%s and %s are both called %s", other, vm.GetId(), vm.GetName())
		}
		names[vm.GetName()] = vm.GetId()
		if len(vm.GetInterfaces()) != len(vm.GetSpec().GetNetworks()) {
			t.Fatalf("%s has %d interfaces of %d networks", vm.GetName(), len(vm.GetInterfaces()), len(vm.GetSpec().GetNetworks()))
		}
		for _, i := range vm.GetInterfaces() {
			n := v.Network(i.GetNetworkId())
			if n == nil {
				t.Fatalf("%s has an address of a network that is gone", vm.GetName())
			}
			if n.GetType() == blixardv1.NetworkType_nat {
				for _, a := range []string{i.GetIpv4(), n.GetId() + i.GetMac(), i.GetIpv6()} {
					if a != "" && addresses[a] != "" {
						t.Fatalf("%s and %s both have %s", addresses[a], vm.GetName(), a)
					}
					addresses[a] = vm.GetName()
				}
			}
		}
		for _, p := range vm.GetSpec().GetPorts() {
			if ports[PortKey(p)] != "" {
				t.Fatalf("%s and %s both publish %s", ports[PortKey(p)], vm.GetName(), PortKey(p))
			}
			ports[PortKey(p)] = vm.GetName()
		}
		for _, c := range claimsOf(vm) {
			claims[c.key] = c.vmID
		}
		for _, at := range vm.GetSpec().GetVolumes() {
			users[at.GetVolume()] = append(users[at.GetVolume()], vm.GetId())
		}
	}
	for _, c := range every[claim](v.db, tableClaim, indexID) {
		if claims[c.key] != c.vmID {
			t.Fatalf("claim %s is of %s, the VMs say %q", c.key, c.vmID, claims[c.key])
		}
		delete(claims, c.key)
	}
	if len(claims) > 0 {
		t.Fatalf("nobody keeps the claims %v", claims)
	}
	checkVolumesGiven(t, v, users)
}

func checkVolumesGiven(t *rapid.T, v *View, users map[string][]string) {
	for _, o := range v.Volumes() {
		want := users[o.GetName()]
		have := slices.Clone(o.GetVmIds())
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Fatalf("volume %s says it is used by %v, the VMs say %v", o.GetName(), have, want)
		}
		delete(users, o.GetName())
		writers := 0
		for _, id := range o.GetVmIds() {
			if o.GetProject() != "" && o.GetProject() != v.VM(id).GetProject() {
				t.Fatalf("volume %s is of project %q, and VM %s, which uses it, of %q", o.GetName(), o.GetProject(), id, v.VM(id).GetProject())
			}
			for _, at := range v.VM(id).GetSpec().GetVolumes() {
				if at.GetVolume() == o.GetName() && !at.GetReadOnly() {
					writers++
				}
			}
		}
		if writers > 1 || writers == 1 && len(o.GetVmIds()) > 1 {
			t.Fatalf("volume %s has %d writers of %d users", o.GetName(), writers, len(o.GetVmIds()))
		}
	}
	if len(users) > 0 {
		t.Fatalf("VMs use volumes that are gone: %v", users)
	}
	for _, a := range v.Allocations() {
		for _, given := range a.GetVolumes() {
			o := v.Volume(given.GetVolumeId())
			if o.GetNodeId() != a.GetNodeId() || given.GetEpoch() > o.GetEpoch() {
				t.Fatalf("allocation %s on %s has epoch %d of volume %s, which is on %s at %d", a.GetId(), a.GetNodeId(), given.GetEpoch(), given.GetName(), o.GetNodeId(), o.GetEpoch())
			}
		}
	}
}

// Addresses, ports and volumes are never given out twice, whatever is asked in
// whatever order, and a snapshot gives the same state.
func TestNothingIsGivenTwice(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		st := newStory()
		for _, text := range []string{registerN1, `register_node {node_id: "n2" name: "two" incarnation: 1 fingerprint {capacity {vcpus: 2 memory_mib: 1000 disk_bytes: 100}}}`} {
			if r := st.do(parse(t, text)); r.Problem != nil {
				t.Fatal(r.Problem)
			}
		}
		for range rapid.IntRange(10, 80).Draw(t, "commands") {
			before := st.describe()
			if r := st.do(parse(t, guestsLife(t, st))); r.Problem != nil && st.describe() != before {
				t.Fatalf("%v, and yet\n%s became\n%s", r.Problem, before, st.describe())
			}
			checkGiven(t, st.s.View())
			checkRoom(t, st.s.View())
		}
		var b bytes.Buffer
		if err := st.s.View().WriteSnapshot(&b); err != nil {
			t.Fatal(err)
		}
		next := New(DefaultLimits())
		if err := next.Restore(&b); err != nil {
			t.Fatal(err)
		}
		if next.View().Hash() != st.s.View().Hash() {
			t.Fatal("the snapshot gives another state")
		}
		checkGiven(t, next.View())
		checkRoom(t, next.View())
	})
}
