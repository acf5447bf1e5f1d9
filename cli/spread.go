package cli

import (
	"fmt"
	"strconv"
	"strings"

	blixardv1 "github.com/blixard/blixard/api/blixard/v1"
)

// parseSpread reads KEY=VALUE over KEY [VALUE=PERCENT,...] [weight NUMBER].
func parseSpread(text string) (*blixardv1.Spread, error) {
	bad := usageError("--spread %q is not KEY=VALUE over KEY [VALUE=PERCENT,...] [weight NUMBER]", text).WithHint("write --spread 'app=web over zone a=50,b=30'")
	words := strings.Fields(text)
	if len(words) < 3 || words[1] != "over" {
		return nil, bad
	}
	key, value, given := strings.Cut(words[0], "=")
	if key == "" || !given {
		return nil, bad
	}
	s := &blixardv1.Spread{Key: key, Value: value, Over: words[2]}
	words = words[3:]
	if len(words) > 0 && words[0] != "weight" {
		for _, one := range strings.Split(words[0], ",") {
			of, number, given := strings.Cut(one, "=")
			percent, err := strconv.ParseUint(number, 10, 32)
			if of == "" || !given || err != nil || percent > 100 {
				return nil, usageError("--spread %q: %q is no share", text, one).WithHint("write VALUE=PERCENT, such as a=50")
			}
			s.Shares = append(s.Shares, &blixardv1.SpreadShare{Value: of, Percent: uint32(percent)})
		}
		words = words[1:]
	}
	switch {
	case len(words) == 0:
		return s, nil
	case len(words) != 2 || words[0] != "weight":
		return nil, bad
	}
	n, err := strconv.ParseUint(words[1], 10, 32)
	if err != nil || n == 0 || n > 100 {
		return nil, usageError("--spread %q: the weight must be a number from 1 to 100", text).WithHint("leave it out when the shares must be kept")
	}
	s.Weight = uint32(n)
	return s, nil
}

// spreadsText tells of spreads in the words of the flag.
func spreadsText(all []*blixardv1.Spread) string {
	var texts []string
	for _, s := range all {
		text := s.GetKey() + "=" + s.GetValue() + " over " + s.GetOver()
		var shares []string
		for _, one := range s.GetShares() {
			shares = append(shares, fmt.Sprintf("%s=%d", one.GetValue(), one.GetPercent()))
		}
		if len(shares) > 0 {
			text += " " + strings.Join(shares, ",")
		}
		if s.GetWeight() != 0 {
			text += fmt.Sprintf(" weight %d", s.GetWeight())
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, "; ")
}
