// Package cron reads the five fields of cron and tells when they are due. It is pure: the
// next time follows from the expression, the zone and a time, and nothing looks at a clock.
//
// Fields are minute, hour, day of the month, month and day of the week. Where both days
// are restricted, either is enough, as cron has it.
//
// When clocks change: an expression with an hour of its own, such as "30 2 * * *", is due
// once a day, at the first of two equal times, and when its time does not exist at the
// moment when clocks go forward. One whose hour begins with "*" follows the time as it
// goes by: it is due in both equal hours, and not in one that does not exist.
//
// It is written anew because the libraries of 2026 that were tried (robfig/cron 3.0.1,
// adhocore/gronx 1.20.4, hashicorp/cronexpr 1.1.3) accept what no cron means, panic on some
// input, leave out a day whose time does not exist, or run twice where clocks go back.
package cron
