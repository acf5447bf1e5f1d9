// Package drivertest is the conformance suite of package driver: every driver
// passes the same tests.
//
// It is not part of the product. A driver's test gives a [Harness] that makes
// drivers and VMs that come up, and calls [Run].
package drivertest
