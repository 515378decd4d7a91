package journal

import "testing"

// Every header is found by its name.
func TestHeaderNames(t *testing.T) {
	for i, name := range headerNames {
		if attrOf(name) != i {
			t.Errorf("attrOf(%q) is %d, not %d", name, attrOf(name), i)
		}
	}
	if attrOf("Nats-Msg-Id") >= 0 {
		t.Error("a header of somebody else is ours")
	}
}
