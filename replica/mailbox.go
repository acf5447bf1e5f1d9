package replica

import "sync"

// mailbox hands values from many goroutines to one, which takes all that wait
// at once. What may wait is bounded by those who put (see underWayBytesMax).
type mailbox[T any] struct {
	wake chan struct{} // holds one token while values wait

	mu     sync.Mutex
	values []T
	closed bool
}

func newMailbox[T any]() *mailbox[T] { return &mailbox[T]{wake: make(chan struct{}, 1)} }

// put adds values, and tells whether the mailbox was open.
func (m *mailbox[T]) put(values ...T) bool {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return false
	}
	first := len(m.values) == 0
	m.values = append(m.values, values...)
	m.mu.Unlock()
	if first {
		select {
		case m.wake <- struct{}{}:
		default:
		}
	}
	return true
}

// take gives everything that waits; spare, whose values are no longer needed,
// is used for what comes.
func (m *mailbox[T]) take(spare []T) []T {
	clear(spare)
	m.mu.Lock()
	defer m.mu.Unlock()
	values := m.values
	m.values = spare[:0]
	return values
}

// close refuses further values and gives what waits.
func (m *mailbox[T]) close() []T {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	values := m.values
	m.values = nil
	return values
}

// len is how many values wait.
func (m *mailbox[T]) len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.values)
}
