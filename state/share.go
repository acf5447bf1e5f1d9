package state

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// Bounds of what is kept once: so many words of so many bytes each, and so many sets of
// labels of so many labels each. When there are more, it begins anew.
const (
	wordsMax     = 1 << 15
	wordSizeMax  = 128
	labelSetsMax = 1 << 14
	labelsMax    = 16
)

// vocabulary keeps one copy of what many objects say, such as the names of nodes, the
// reasons of statuses and labels: what is decoded has a copy each.
type vocabulary struct {
	words  map[string]string
	labels map[string]map[string]string
}

func newVocabulary() *vocabulary {
	return &vocabulary{words: map[string]string{}, labels: map[string]map[string]string{}}
}

func (v *vocabulary) word(s *string) {
	if *s == "" || len(*s) > wordSizeMax {
		return
	}
	if kept, ok := v.words[*s]; ok {
		*s = kept
		return
	}
	if len(v.words) >= wordsMax {
		clear(v.words)
	}
	v.words[*s] = *s
}

// labelSet gives a set of labels that is equal to set. Both must never change.
func (v *vocabulary) labelSet(set map[string]string) map[string]string {
	if len(set) == 0 {
		return nil
	}
	if len(set) > labelsMax {
		return set
	}
	var text strings.Builder
	for _, k := range slices.Sorted(maps.Keys(set)) {
		text.WriteString(strconv.Quote(k))
		text.WriteString(strconv.Quote(set[k]))
	}
	if kept, ok := v.labels[text.String()]; ok {
		return kept
	}
	if len(v.labels) >= labelSetsMax {
		clear(v.labels)
	}
	v.labels[text.String()] = set
	return set
}

func (v *vocabulary) status(s *blixardv1.VMStatus) {
	if s == nil {
		return
	}
	for _, word := range []*string{
		&s.Node, &s.Reason, &s.Message, &s.Accelerator, &s.Kernel, &s.KernelRelease, &s.StopRung, &s.HealthMessage, &s.ImageDigest,
	} {
		v.word(word)
	}
}

func (v *vocabulary) spec(s *blixardv1.VMSpec) {
	if s == nil {
		return
	}
	v.word(&s.Image)
	v.word(&s.Kernel)
	for i := range s.GetCommand() {
		v.word(&s.Command[i])
	}
	for _, e := range s.GetEnv() {
		v.word(&e.Name)
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
