// Package boottest boots microVMs for tests and benchmarks, by running QEMU itself as a person would at
// a shell: what the product adds to a bare boot shows beside it.
//
// It is not a driver: it survives nothing, fences nothing and adopts nothing. A machine ends with its test.
package boottest
