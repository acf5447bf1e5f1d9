package state

import (
	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// Bounds of the words that are kept once: so many of so many bytes each. When there are
// more, it begins anew.
const (
	wordsMax    = 1 << 15
	wordSizeMax = 128
)

// vocabulary keeps one copy of strings that many objects say, such as the names of nodes and
// the reasons of statuses: what is decoded has a copy each.
type vocabulary map[string]string

func (w vocabulary) of(s *string) {
	if *s == "" || len(*s) > wordSizeMax {
		return
	}
	if kept, ok := w[*s]; ok {
		*s = kept
		return
	}
	if len(w) >= wordsMax {
		clear(w)
	}
	w[*s] = *s
}

func (w vocabulary) status(s *blixardv1.VMStatus) {
	if s == nil {
		return
	}
	for _, word := range []*string{
		&s.Node, &s.Reason, &s.Message, &s.Accelerator, &s.Kernel, &s.KernelRelease, &s.StopRung, &s.HealthMessage, &s.ImageDigest,
	} {
		w.of(word)
	}
}

func (w vocabulary) spec(s *blixardv1.VMSpec) {
	if s != nil {
		w.of(&s.Image)
		w.of(&s.Kernel)
	}
}

// share lets an allocation that was read have in common with its VM what it had in common
// before it was written: most of what there is.
func share(a *blixardv1.Allocation, vm *blixardv1.VM) {
	if a.GetVmName() == vm.GetName() {
		a.VmId, a.VmName = vm.GetId(), vm.GetName()
	}
	if proto.Equal(a.GetSpec(), vm.GetSpec()) {
		a.Spec = vm.GetSpec()
	}
	if a.GetId() == vm.GetStatus().GetAllocationId() && proto.Equal(a.GetStatus(), vm.GetStatus()) {
		a.Status, a.Id = vm.GetStatus(), vm.GetStatus().GetAllocationId()
	}
}
