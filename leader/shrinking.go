package leader

// roomKept for that many entries stays when a map becomes empty.
const roomKept = 1024

// shrinking is a map by id that gives its room back when it becomes empty: one that is
// built in keeps that of the most that it ever held. The zero value is empty.
type shrinking[V any] struct {
	of   map[string]V
	most int
}

func (m *shrinking[V]) put(id string, v V) {
	if m.of == nil {
		m.of = map[string]V{}
	}
	m.of[id] = v
	m.most = max(m.most, len(m.of))
}

func (m *shrinking[V]) remove(id string) {
	delete(m.of, id)
	if len(m.of) == 0 && m.most > roomKept {
		m.of, m.most = nil, 0
	}
}

func (m *shrinking[V]) clear() { m.of, m.most = nil, 0 }
