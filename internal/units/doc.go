// Package units reads and writes sizes and durations the way people write them:
// 512MiB, 1.5GiB, 10s, 1h30m, 2 days.
//
// It is not about limits: whoever asks for a size says which ones are allowed.
package units
