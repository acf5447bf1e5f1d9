// Package client speaks to a cluster of blixard nodes: it finds the local node,
// gives every change an idempotency key that its retries keep, tries again what
// a passing fault refused, and resumes watches where they broke off.
//
// Calls go through the generated clients of api/blixard/v1; their errors are
// problems (package internal/problem, and the Problem message in the details of
// a status).
//
// It is not a cache and decides nothing: what a call returns is what a node
// answered.
package client
