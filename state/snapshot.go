package state

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"io"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/planted"
	"github.com/blixard/blixard/internal/problem"
)

const (
	// snapshotFormat is the newest format of a stream that this version writes
	// and reads.
	snapshotFormat = 1
	// recordBytesMax bounds one record, so that damage in a length cannot ask for
	// all memory: four times the largest command.
	recordBytesMax = 4 << 20
	// streamBufferBytes is one write, after some half a millisecond of encoding.
	streamBufferBytes = 32 << 10
)

// WriteSnapshot writes all of the view as a stream of length-delimited
// StateSnapshot records: a header, the objects in the order of their ids, the
// events and the remembered answers in the order of the log, and an end that
// carries the digest of everything before it. Equal states give equal bytes.
func (v *View) WriteSnapshot(w io.Writer) error {
	out := bufio.NewWriterSize(w, streamBufferBytes)
	sw := &snapshotWriter{out: out, digest: sha256.New()}
	v.put(sw)
	if sw.err == nil {
		sw.err = out.Flush()
	}
	if sw.err != nil {
		return fmt.Errorf("write snapshot of index %d: %w", v.index, sw.err)
	}
	return nil
}

// put writes the whole stream.
func (v *View) put(sw *snapshotWriter) {
	sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Header{
		Header: &blixardv1.StateHeader{Format: snapshotFormat, Index: v.index},
	}})
	v.putObjects(sw)
	for _, o := range v.events {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Event{Event: o}})
	}
	v.putAnswers(sw)
	sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_End{
		End: &blixardv1.StateEnd{Records: sw.records, Digest: sw.digest.Sum(nil)},
	}})
}

// putAnswers writes the remembered answers, of which there are more than of anything
// else: one record serves them all.
func (v *View) putAnswers(sw *snapshotWriter) {
	if planted.Is(planted.SnapshotWithoutKeys) {
		return
	}
	body := &blixardv1.IdempotencyRecord{Time: &timestamppb.Timestamp{}}
	record := &blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Idempotency{Idempotency: body}}
	for _, o := range v.answers {
		o.record(body)
		sw.put(record)
	}
}

// putObjects writes the tables. No list of all objects is made: there may be very
// many.
func (v *View) putObjects(sw *snapshotWriter) {
	db := v.db
	each(db, tableVM, func(o *blixardv1.VM) {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Vm{Vm: o}})
	})
	each(db, tableAllocation, func(o *blixardv1.Allocation) {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Allocation{Allocation: o}})
	})
	each(db, tableNode, func(o *blixardv1.Node) {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Node{Node: o}})
	})
	each(db, tableCluster, func(o *blixardv1.Cluster) {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Cluster{Cluster: o}})
	})
	each(db, tableMember, func(o *blixardv1.Member) {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Member{Member: o}})
	})
	each(db, tableToken, func(o *blixardv1.Token) {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Token{Token: o}})
	})
	each(db, tableImage, func(o *blixardv1.Image) {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Image{Image: o}})
	})
	each(db, tableVolume, func(o *blixardv1.Volume) {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Volume{Volume: o}})
	})
	each(db, tableNetwork, func(o *blixardv1.Network) {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Network{Network: o}})
	})
	each(db, tableSecret, func(o *blixardv1.Secret) {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Secret{Secret: o}})
	})
	each(db, tableTask, func(o *blixardv1.Task) {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Task{Task: o}})
	})
	each(db, tableQuota, func(o *blixardv1.Quota) {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Quota{Quota: o}})
	})
	each(db, tableSettings, func(o *blixardv1.Settings) {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Settings{Settings: o}})
	})
	each(db, tableSchedule, func(o *blixardv1.Schedule) {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Schedule{Schedule: o}})
	})
	each(db, tableGroup, func(o *blixardv1.Group) {
		sw.put(&blixardv1.StateSnapshot{Record: &blixardv1.StateSnapshot_Group{Group: o}})
	})
}

// Hash is a digest of everything in the view: replicas at the same index have
// the same.
func (v *View) Hash() [sha256.Size]byte {
	sw := &snapshotWriter{out: io.Discard, digest: sha256.New()}
	v.put(sw)
	if sw.err != nil {
		panic(sw.err) // what is in the state was encoded before
	}
	return [sha256.Size]byte(sw.digest.Sum(nil))
}

type snapshotWriter struct {
	out     io.Writer
	digest  hash.Hash
	records uint64
	buf     []byte
	err     error
}

func (w *snapshotWriter) put(record *blixardv1.StateSnapshot) {
	if w.err != nil {
		return
	}
	options := proto.MarshalOptions{Deterministic: true}
	size := options.Size(record)
	options.UseCachedSize = true // objects are shared and never changed
	w.buf = binary.AppendUvarint(w.buf[:0], uint64(size))
	w.buf, w.err = options.MarshalAppend(w.buf, record)
	if w.err != nil {
		return
	}
	if size > recordBytesMax {
		w.err = fmt.Errorf("record of %d bytes, at most %d can be read back", size, recordBytesMax)
		return
	}
	w.digest.Write(w.buf)
	w.records++
	_, w.err = w.out.Write(w.buf)
}

// Restore replaces everything by the stream of WriteSnapshot. On an error the
// state is as it was. Watches cannot resume from before the stream's index.
func (s *State) Restore(r io.Reader) error {
	next := &State{limits: s.limits}
	next.reset()
	if err := next.read(r); err != nil {
		return fmt.Errorf("restore state: %w", err)
	}
	s.Adopt(next)
	return nil
}

// Adopt replaces everything by what next holds, as Restore does. next must not be
// used afterwards.
func (s *State) Adopt(next *State) {
	s.index, s.floor, s.db, s.tasks = next.index, next.index, next.db, next.tasks
	s.events, s.changes, s.answers, s.byKey, s.vocabulary = next.events, nil, next.answers, next.byKey, next.vocabulary
	s.publish()
}

func damaged(format string, args ...any) error {
	return problem.New(problem.Internal, "snapshot.damaged", "the state's snapshot is damaged: "+format, args...).
		WithHint("the replica falls back to its older snapshot and the log")
}

// read fills the empty s.
func (s *State) read(in io.Reader) error {
	r := newSnapshotReader(in)
	defer r.close()
	record, _, err := r.next()
	if err != nil {
		return err
	}
	header := record.GetHeader()
	if header == nil {
		return damaged("it does not begin with a header")
	}
	if header.GetFormat() > snapshotFormat {
		return problem.New(problem.Unavailable, "data.newer", "the snapshot has format %d, this version reads up to %d",
			header.GetFormat(), snapshotFormat).WithHint("start the newer version of blixard again")
	}
	s.index = header.GetIndex()
	db := s.db
	for {
		record, sum, err := r.next()
		if err != nil {
			return err
		}
		if end := record.GetEnd(); end != nil {
			if (end.GetRecords() != r.records-1 || !bytes.Equal(end.GetDigest(), sum)) && !planted.Is(planted.SnapshotUnchecked) {
				return damaged("its digest does not match")
			}
			break
		}
		if err := s.readRecord(db, record); err != nil {
			return err
		}
	}
	return s.check()
}

// insertVM also makes its claims again, and counts it.
func insertVM(db *database, vm *blixardv1.VM) error {
	for _, c := range claimsOf(vm) {
		if other := first[claim](db, tableClaim, indexID, c.id()); other != nil && other.vmID != vm.GetId() {
			return fmt.Errorf("VMs %s and %s both have %s", other.vmID, vm.GetId(), c.id())
		}
		insert(db, tableClaim, c)
	}
	if err := load(db, tableVM, vm); err != nil {
		return err
	}
	recount(db, vm, nil)
	return nil
}

func (s *State) readRecord(db *database, record *blixardv1.StateSnapshot) error {
	var err error
	switch o := record.GetRecord().(type) {
	case *blixardv1.StateSnapshot_Vm:
		s.vocabulary.status(o.Vm.GetStatus())
		s.vocabulary.spec(o.Vm.GetSpec())
		o.Vm.Labels = s.vocabulary.labelSet(o.Vm.GetLabels())
		err = insertVM(db, o.Vm)
	case *blixardv1.StateSnapshot_Allocation:
		a := o.Allocation
		s.vocabulary.word(&a.NodeId)
		s.vocabulary.status(a.GetStatus())
		s.vocabulary.spec(a.GetSpec())
		if vm := first[blixardv1.VM](db, tableVM, indexID, a.GetVmId()); vm != nil {
			share(a, vm)
		}
		err = load(db, tableAllocation, a)
	case *blixardv1.StateSnapshot_Node:
		err = load(db, tableNode, o.Node)
	case *blixardv1.StateSnapshot_Cluster:
		err = load(db, tableCluster, o.Cluster)
	case *blixardv1.StateSnapshot_Member:
		err = load(db, tableMember, o.Member)
	case *blixardv1.StateSnapshot_Token:
		err = load(db, tableToken, o.Token)
	case *blixardv1.StateSnapshot_Image:
		err = load(db, tableImage, o.Image)
	case *blixardv1.StateSnapshot_Volume:
		err = load(db, tableVolume, o.Volume)
	case *blixardv1.StateSnapshot_Network:
		err = load(db, tableNetwork, o.Network)
	case *blixardv1.StateSnapshot_Secret:
		err = load(db, tableSecret, o.Secret)
	case *blixardv1.StateSnapshot_Task:
		if err = load(db, tableTask, o.Task); err == nil {
			recountTask(db, o.Task, nil)
			s.tasks++
		}
	case *blixardv1.StateSnapshot_Quota:
		err = load(db, tableQuota, o.Quota)
	case *blixardv1.StateSnapshot_Settings:
		err = load(db, tableSettings, o.Settings)
	case *blixardv1.StateSnapshot_Schedule:
		err = load(db, tableSchedule, o.Schedule)
	case *blixardv1.StateSnapshot_Group:
		err = load(db, tableGroup, o.Group)
	case *blixardv1.StateSnapshot_Event:
		s.events = append(s.events, o.Event)
	case *blixardv1.StateSnapshot_Idempotency:
		a := answerOf(o.Idempotency)
		s.answers = append(s.answers, a)
		s.byKey[a.key] = a
	default:
		return damaged("an unknown record")
	}
	if err != nil {
		return damaged("%v", err)
	}
	return nil
}

// check holds what was read against the invariants between objects, once what depends on
// the level of all members is counted.
func (s *State) check() error {
	db := s.db
	if featureLevel(db) >= levelOfVolumeQuota {
		recountVolumes(db, true)
	}
	sums := map[string]*blixardv1.Resources{}
	for _, a := range every[blixardv1.Allocation](db, tableAllocation, indexID) {
		sums[a.GetNodeId()] = add(sums[a.GetNodeId()], s.limits.Reservation(a.GetSpec()))
		vm := first[blixardv1.VM](db, tableVM, indexID, a.GetVmId())
		if vm == nil && Lost(a) {
			continue // the VM was deleted before its old node was back
		}
		if vm == nil || vm.GetStatus().GetEpoch() < a.GetEpoch() {
			return damaged("allocation %s of epoch %d has no VM of that epoch", a.GetId(), a.GetEpoch())
		}
	}
	var orphan error
	each(db, tableVM, func(vm *blixardv1.VM) {
		if id := GroupOf(vm); id != "" && groupNamed(db, id) == nil {
			orphan = damaged("VM %s is of group %s, which is not there", vm.GetId(), id)
		}
	})
	if orphan != nil {
		return orphan
	}
	for _, n := range every[blixardv1.Node](db, tableNode, indexID) {
		if !proto.Equal(add(sums[n.GetId()], nil), n.GetAllocated()) {
			return damaged("node %s has %v reserved, its allocations %v", n.GetId(), n.GetAllocated(), sums[n.GetId()])
		}
	}
	return checkVolumeBytes(db)
}
