package peer

import (
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// The limits of a peer's queue and of a batch.
const (
	// queueBytesMax of appends: 16 of the largest. Raft lets at most 256 be under
	// way, and what is dropped here it sends again.
	queueBytesMax = 32 << 20
	// urgentMax messages without entries: some minutes of heartbeats and answers.
	urgentMax = 4096
	// batchMessagesMax and batchBytesMax of one message on the stream. A single
	// larger message goes alone.
	batchMessagesMax = 4096
	batchBytesMax    = 1 << 20
)

// queue holds what waits for one peer, encoded. It belongs to whoever holds the
// lock around it.
type queue struct {
	urgent  [][]byte
	appends [][]byte
	bytes   int // of appends
}

// put adds a message and tells whether there was room.
func (q *queue) put(m *raftpb.Message) (bool, error) {
	carries := len(m.GetEntries()) > 0
	if !carries && len(q.urgent) >= urgentMax {
		return false, nil
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return false, err
	}
	if !carries {
		q.urgent = append(q.urgent, b)
		return true, nil
	}
	if q.bytes+len(b) > queueBytesMax && len(q.appends) > 0 {
		return false, nil
	}
	q.appends = append(q.appends, b)
	q.bytes += len(b)
	return true, nil
}

// take gives the next batch, urgent messages first; nil when nothing waits.
func (q *queue) take() [][]byte {
	var batch [][]byte
	size := 0
	from := func(lane *[][]byte) (taken int) {
		n := 0
		for _, b := range *lane {
			if len(batch) >= batchMessagesMax || size > 0 && size+len(b) > batchBytesMax {
				break
			}
			batch, size, taken = append(batch, b), size+len(b), taken+len(b)
			n++
		}
		clear((*lane)[:n])
		if *lane = (*lane)[n:]; len(*lane) == 0 {
			*lane = nil
		}
		return taken
	}
	from(&q.urgent)
	q.bytes -= from(&q.appends)
	return batch
}

// empty tells whether nothing waits.
func (q *queue) empty() bool { return len(q.urgent)+len(q.appends) == 0 }
