// Package wallclock is the host's clock for people: the time of certificates, of
// tokens and of what is shown. It may be wrong, jump and differ between hosts, so
// nothing that must be safe depends on it: leases and elections count monotonic time.
//
// It is not for measuring how long something takes. Built with the tag failpoints it
// is off by what the variable CLOCK_OFFSET_BLIXARD says, so that tests run real
// daemons whose clocks differ.
package wallclock
