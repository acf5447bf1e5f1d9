package units

import (
	"math/bits"
	"strconv"
	"strings"

	"github.com/blixard/blixard/internal/problem"
)

// Size is a number of bytes.
type Size uint64

// The binary sizes.
const (
	Byte Size = 1
	KiB       = 1024 * Byte
	MiB       = 1024 * KiB
	GiB       = 1024 * MiB
	TiB       = 1024 * GiB
	PiB       = 1024 * TiB
	EiB       = 1024 * PiB
)

// textBytesMax bounds what is read as a size or a duration: the longest one that
// makes sense, a fraction of 20 digits with its unit, has less than 48.
const textBytesMax = 64

// fractionDigitsMax keeps ten to its power within 64 bits (10^18 < 2^60).
const fractionDigitsMax = 18

// sizeUnits maps what people write, in lower case, to bytes. A single letter is
// binary, as in QEMU, systemd and Docker; "MB" is decimal, as its standard says.
var sizeUnits = map[string]Size{
	"b": Byte, "byte": Byte, "bytes": Byte,
	"k": KiB, "ki": KiB, "kib": KiB, "kb": 1000,
	"m": MiB, "mi": MiB, "mib": MiB, "mb": 1000 * 1000,
	"g": GiB, "gi": GiB, "gib": GiB, "gb": 1000 * 1000 * 1000,
	"t": TiB, "ti": TiB, "tib": TiB, "tb": 1000 * 1000 * 1000 * 1000,
	"p": PiB, "pi": PiB, "pib": PiB, "pb": 1000 * 1000 * 1000 * 1000 * 1000,
	"e": EiB, "ei": EiB, "eib": EiB,
}

// binaryUnits in falling order, for writing.
var binaryUnits = []struct {
	name string
	size Size
}{{"EiB", EiB}, {"PiB", PiB}, {"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"B", Byte}}

// ParseSize reads a size such as 512MiB, 1.5GiB, 512M or 2GB; spaces before the
// unit and letter case do not matter. A number without a unit is refused, since
// it would mean bytes to one reader and MiB to another; 0 needs none. A fraction
// must come out at whole bytes. Errors are of kind Invalid, code size.invalid.
func ParseSize(text string) (Size, error) {
	whole, fraction, unit, ok := splitNumber(text)
	if !ok {
		return 0, badSize(text, "it is not a number with a unit")
	}
	if unit == "" {
		if strings.Trim(whole+fraction, "0") == "" {
			return 0, nil
		}
		return 0, problem.New(problem.Invalid, "size.invalid", "size %q has no unit", shorten(text)).
			WithHint("write %sMiB or %sGiB", strings.TrimSpace(text), strings.TrimSpace(text))
	}
	scale, known := sizeUnits[strings.ToLower(unit)]
	if !known {
		return 0, badSize(text, "the unit "+strconv.Quote(unit)+" is not known")
	}
	value, reason := scaled(whole, fraction, uint64(scale))
	if reason != "" {
		return 0, badSize(text, reason)
	}
	return Size(value), nil
}

func badSize(text, reason string) error {
	return problem.New(problem.Invalid, "size.invalid", "size %q: %s", shorten(text), reason).
		WithHint("write a size as 512MiB, 1.5GiB, 512M (the same as 512MiB) or 500MB (decimal)")
}

// String writes the size exactly: the largest binary unit of which it is a
// whole number. ParseSize reads it back to the same size.
func (s Size) String() string {
	if s == 0 {
		return "0B"
	}
	for _, u := range binaryUnits {
		if s%u.size == 0 {
			return strconv.FormatUint(uint64(s/u.size), 10) + u.name
		}
	}
	return strconv.FormatUint(uint64(s), 10) + "B"
}

// Human writes the size for a table: three or four digits and a unit, rounded.
func (s Size) Human() string {
	for _, u := range binaryUnits {
		if s < u.size || u.size == Byte {
			continue
		}
		value := float64(s) / float64(u.size)
		digits := 1
		if value >= 100 || s%u.size == 0 {
			digits = 0
		}
		return strconv.FormatFloat(value, 'f', digits, 64) + u.name
	}
	return strconv.FormatUint(uint64(s), 10) + "B"
}

// CeilMiB gives the size in MiB, rounded up.
func (s Size) CeilMiB() uint64 {
	n := uint64(s / MiB)
	if s%MiB != 0 {
		n++
	}
	return n
}

// MarshalText writes the size as String does.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what ParseSize reads.
func (s *Size) UnmarshalText(text []byte) error {
	v, err := ParseSize(string(text))
	if err == nil {
		*s = v
	}
	return err
}

// Set and Type make *Size a flag.
func (s *Size) Set(text string) error { return s.UnmarshalText([]byte(text)) }

// Type names the kind of value in the help.
func (s *Size) Type() string { return "size" }

// splitNumber takes "1.5 GiB" apart; fraction holds the digits behind the point.
func splitNumber(text string) (whole, fraction, unit string, ok bool) {
	if len(text) > textBytesMax {
		return "", "", "", false
	}
	text = strings.TrimSpace(text)
	whole, rest := digits(text)
	if strings.HasPrefix(rest, ".") {
		fraction, rest = digits(rest[1:])
		if fraction == "" {
			return "", "", "", false
		}
	}
	if whole == "" && fraction == "" {
		return "", "", "", false
	}
	return whole, fraction, strings.TrimLeft(rest, " "), true
}

func digits(text string) (head, rest string) {
	n := 0
	for n < len(text) && text[n] >= '0' && text[n] <= '9' {
		n++
	}
	return text[:n], text[n:]
}

// scaled computes whole.fraction x scale exactly, or gives the reason why not.
func scaled(whole, fraction string, scale uint64) (value uint64, reason string) {
	const tooLarge = "it is too large"
	if whole == "" {
		whole = "0"
	}
	n, err := strconv.ParseUint(whole, 10, 64)
	if err != nil {
		return 0, tooLarge
	}
	high, value := bits.Mul64(n, scale)
	if high != 0 {
		return 0, tooLarge
	}
	fraction = strings.TrimRight(fraction, "0")
	if fraction == "" {
		return value, ""
	}
	if len(fraction) > fractionDigitsMax {
		return 0, "it has too many digits behind the point"
	}
	part, err := strconv.ParseUint(fraction, 10, 64)
	if err != nil {
		return 0, tooLarge
	}
	tens := uint64(1)
	for range fraction {
		tens *= 10
	}
	high, low := bits.Mul64(part, scale)
	quotient, remainder := bits.Div64(high, low, tens)
	if remainder != 0 {
		return 0, "its fraction does not come out even"
	}
	sum, carry := bits.Add64(value, quotient, 0)
	if carry != 0 {
		return 0, tooLarge
	}
	return sum, ""
}

func shorten(text string) string {
	if len(text) <= textBytesMax {
		return text
	}
	return strings.ToValidUTF8(text[:textBytesMax], "") + "..."
}
