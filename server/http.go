package server

import (
	"net/http"
	"strings"

	"connectrpc.com/vanguard/vanguardgrpc"

	"github.com/blixard/blixard/auth"
	"github.com/blixard/blixard/internal/problem"
)

// newHTTP gives the same services as JSON: POST a message to
// /blixard.v1.Service/Method. Connect and gRPC-Web clients are served as well.
func (s *Server) newHTTP() (*http.Server, error) {
	h, err := vanguardgrpc.NewTranscoder(s.grpc)
	if err != nil {
		return nil, problem.New(problem.Internal, "server.transcoder", "the HTTP half can't be set up").WithCause(err)
	}
	return &http.Server{
		Handler:           plainJSON(http.MaxBytesHandler(h, requestBytesMax)),
		ReadHeaderTimeout: httpHeaderTimeout,
		IdleTimeout:       httpIdleTimeout,
		MaxHeaderBytes:    httpHeaderBytes,
		ConnContext:       auth.ConnContext,
	}, nil
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
