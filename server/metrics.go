package server

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/blixard/blixard/internal/problem"
)

// callBuckets are bounds of the duration of calls, in seconds: from a read that is
// answered here to a change on a slow disk.
var callBuckets = []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}

// callMetrics counts the calls that this node answered or passed on.
type callMetrics struct {
	duration *prometheus.HistogramVec
	streams  *prometheus.CounterVec
	refused  *prometheus.CounterVec
}

func newCallMetrics() *callMetrics {
	return &callMetrics{
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "blixard_call_duration_seconds", Help: "How long calls with one answer took, those that were passed on included.", Buckets: callBuckets,
		}, []string{"method", "code"}),
		streams: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "blixard_streams_total", Help: "Streams that ended, by the kind of their problem or ok.",
		}, []string{"method", "code"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "blixard_calls_refused_total", Help: "Calls that no rule allowed to their caller.",
		}, []string{"method", "code"}),
	}
}

// methodOf is a method without its package: VMService/GetVM. Only methods that there
// are come here, so the number of labels is bounded.
func methodOf(full string) string { return strings.TrimPrefix(full, "/blixard.v1.") }

func codeOf(err error) string {
	if err == nil {
		return "ok"
	}
	return string(problem.From(err).Kind)
}

func (m *callMetrics) ended(method string, begun time.Time, err error) {
	m.duration.WithLabelValues(methodOf(method), codeOf(err)).Observe(time.Since(begun).Seconds())
}

// Collectors give what the server counts, for a registry of metrics.
func (s *Server) Collectors() []prometheus.Collector {
	return []prometheus.Collector{s.metrics.duration, s.metrics.streams, s.metrics.refused}
}

// forLookers serves h to those who may look: by the socket, or with a certificate
// of the cluster.
func (s *Server) forLookers(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := s.identify(withTLS(r))
		if err == nil && !slices.Contains(look, c.role) {
			err = denied("auth.no_certificate", "metrics need a certificate of this cluster").
				WithHint("make one with `blixard cluster credentials NAME --role viewer`")
		}
		if err != nil {
			http.Error(w, problem.From(s.audited(c, r.URL.Path, err)).Error(), http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// withTLS tells identify of the connection, as gRPC does.
func withTLS(r *http.Request) context.Context {
	if r.TLS == nil {
		return r.Context()
	}
	return peer.NewContext(r.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: *r.TLS}})
}
