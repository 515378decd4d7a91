package ovf

import (
	"math"
	"strconv"
	"strings"
)

// unitOf gives base units in bytes: the decimal and binary prefixes of DSP0004 annex C, and the names that OVF 0.9
// and CIM before it used, which mean powers of two.
func unitOf(name string) (int64, bool) {
	switch strings.ToLower(name) {
	case "byte", "bytes", "b":
		return 1, true
	case "kilobyte":
		return 1000, true
	case "megabyte":
		return 1000_000, true
	case "gigabyte":
		return 1000_000_000, true
	case "terabyte":
		return 1000_000_000_000, true
	case "kibibyte", "kilobytes", "kb":
		return 1 << 10, true
	case "mebibyte", "megabytes", "mb":
		return 1 << 20, true
	case "gibibyte", "gigabytes", "gb":
		return 1 << 30, true
	case "tebibyte", "terabytes", "tb":
		return 1 << 40, true
	}
	return 0, false
}

// parseUnit reads a programmatic unit of bytes (DSP0004 annex C): factors joined by "*", each a unit, a number or a
// power, "byte * 2^20". An empty one is bytes (DSP0243 9.1).
func parseUnit(s string) (int64, bool) {
	if strings.TrimSpace(s) == "" {
		return 1, true
	}
	product := int64(1)
	for factor := range strings.SplitSeq(s, "*") {
		value, ok := parseFactor(strings.TrimSpace(factor))
		if !ok {
			return 0, false
		}
		if product, ok = multiply(product, value); !ok {
			return 0, false
		}
	}
	return product, true
}

func parseFactor(s string) (int64, bool) {
	if unit, ok := unitOf(s); ok {
		return unit, true
	}
	base, exponent, power := strings.Cut(s, "^")
	b, err := strconv.ParseInt(strings.TrimSpace(base), 10, 64)
	if err != nil || b <= 0 {
		return 0, false
	}
	if !power {
		return b, true
	}
	e, err := strconv.ParseInt(strings.TrimSpace(exponent), 10, 64)
	if err != nil || e < 0 || e > 62 {
		return 0, false
	}
	out, ok := int64(1), true
	for range e {
		if out, ok = multiply(out, b); !ok {
			return 0, false
		}
	}
	return out, true
}

// multiply gives the product of two numbers that are not negative, unless it is too large.
func multiply(a, b int64) (int64, bool) {
	if a < 0 || b < 0 || b > 0 && a > math.MaxInt64/b {
		return 0, false
	}
	return a * b, true
}
