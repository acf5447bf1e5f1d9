package server

import (
	"fmt"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
	"github.com/blixard/blixard/internal/problem"
)

// checkSpreads refuses shares that can't be kept together.
func checkSpreads(all []*blixardv1.Spread) error {
	for i, a := range all {
		if a.GetOver() == "node.name" {
			return problem.New(problem.Invalid, "spread.over", "VMs can't be spread by shares over %s", a.GetOver()).
				WithHint("name what several nodes share, such as zone or node.domain; --apart spreads over nodes").WithField("spreads[%d].over", i)
		}
		if err := checkFact(a.GetOver(), "over"); err != nil {
			return problem.Under(fmt.Sprintf("spreads[%d]", i), err)
		}
		sum, seen := uint32(0), map[string]bool{}
		for k, one := range a.GetShares() {
			if seen[one.GetValue()] {
				return problem.New(problem.Invalid, "spread.twice", "%s=%s has two shares", a.GetOver(), one.GetValue()).
					WithHint("name each value once").WithField("spreads[%d].shares[%d].value", i, k)
			}
			seen[one.GetValue()] = true
			sum += one.GetPercent()
		}
		if sum > 100 {
			return problem.New(problem.Invalid, "spread.sum", "the shares of %s are %d %% together", a.GetOver(), sum).
				WithHint("they are at most 100; what is left goes evenly to the other values").WithField("spreads[%d].shares", i)
		}
		for _, b := range all[:i] {
			if a.GetKey() == b.GetKey() && a.GetValue() == b.GetValue() && a.GetOver() == b.GetOver() {
				return problem.New(problem.Invalid, "spread.twice", "VMs with %s=%s are spread over %s twice", a.GetKey(), a.GetValue(), a.GetOver()).
					WithHint("leave one of both out").WithField("spreads[%d]", i)
			}
		}
	}
	return nil
}
