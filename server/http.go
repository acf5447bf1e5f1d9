package server

import (
	"io"
	"log/slog"
	"net/http"
	"strings"

	"connectrpc.com/vanguard/vanguardgrpc"

	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/internal/problem"
)

// newHTTP gives the same services as JSON, on the socket and over TLS: POST a
// message to /blixard.v1.Service/Method. Connect and gRPC-Web clients are served as
// well. GET /healthz answers 200 while there is a leader, GET /metrics in Prometheus'
// form.
func (s *Server) newHTTP() (local, network *http.Server, err error) {
	h, err := vanguardgrpc.NewTranscoder(s.grpc)
	if err != nil {
		return nil, nil, problem.New(problem.Internal, "server.transcoder", "the HTTP half can't be set up").WithCause(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", s.health)
	if s.cfg.Metrics != nil {
		mux.Handle("GET /metrics", s.forLookers(s.cfg.Metrics))
	}
	mux.Handle("/", plainJSON(http.MaxBytesHandler(h, requestBytesMax)))
	one := func() *http.Server {
		return &http.Server{
			Handler: mux, ReadHeaderTimeout: httpHeaderTimeout, IdleTimeout: httpIdleTimeout, MaxHeaderBytes: httpHeaderBytes,
			ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		}
	}
	local, network = one(), one()
	local.ConnContext = auth.ConnContext
	if s.cfg.Trust != nil {
		network.TLSConfig = s.cfg.Trust.ServerTLS()
	}
	return local, network, nil
}

// health tells load balancers and the like whether the node is of use. It is for
// everybody, and says nothing else.
func (s *Server) health(w http.ResponseWriter, _ *http.Request) {
	if s.cfg.Replica.Status().LeaderID == 0 {
		http.Error(w, "no leader", http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}

// plainJSON lets a plain curl with -d be understood: a POST whose body is not
// said to be anything else is JSON in the Connect protocol's unary form
// (https://connectrpc.com/docs/protocol).
func plainJSON(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
			switch strings.TrimSpace(kind) {
			case "", "application/x-www-form-urlencoded", "text/json":
				r.Header.Set("Content-Type", "application/json")
				kind = "application/json"
			}
			if strings.TrimSpace(kind) == "application/json" && r.Header.Get("Connect-Protocol-Version") == "" {
				r.Header.Set("Connect-Protocol-Version", "1")
			}
		}
		next.ServeHTTP(w, r)
	})
}
