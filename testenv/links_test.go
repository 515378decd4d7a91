package testenv

import (
	"testing"
	"time"
)

// TestBytesAtTheSocket: the bytes that a region says it received are those that
// really came over the link, as counted outside.
func TestBytesAtTheSocket(t *testing.T) {
	t.Parallel()
	const size = 8 * mib
	w := New(t, realProgram(t), Options{Regions: []string{"beijing", "sydney"}})
	w.Pools(8)
	number, operation := w.Save(w.Create("shop", "beijing", Disk(11, size)), "Shop", "beijing", "sydney")
	w.Done(operation)
	at := w.Verified(number, 1, "beijing", "sydney")
	counted := w.Region("beijing").Transfer.Down()
	for _, r := range at.Regions {
		if r.Region != "sydney" {
			continue
		}
		if d := r.Received - counted; d*d > counted/100*(counted/100) || r.Received < size {
			t.Errorf("sydney says that %d bytes came, the link counted %d", r.Received, counted)
		}
	}
}

// TestLinkCapHolds: a capped link brings in no more than its cap.
func TestLinkCapHolds(t *testing.T) {
	t.Parallel()
	const size, most = 8 * mib, 2 * mib
	w := New(t, realProgram(t), Options{Regions: []string{"beijing", "sydney"}, Flags: map[string][]string{"sydney": {"--link-bytes-per-second", "2097152"}}})
	w.Pools(8)
	env := w.Create("shop", "beijing", Disk(12, size))
	link := w.Region("beijing").Transfer
	begun := link.Passed(1)
	_, operation := w.Save(env, "Shop", "beijing", "sydney")
	await(t, w.Context(), "the copy does not begin", begun)
	start := time.Now()
	// The end of the operation, and not of what the link counts: what the sender
	// is ahead of the receiver lies in buffers on the way.
	w.Done(operation)
	took := time.Since(start)
	if rate := float64(size) / took.Seconds(); rate > most*1.1 {
		t.Errorf("%d bytes came in %s: %.0f a second, %d are allowed", size, took, rate, most)
	} else {
		t.Logf("%d bytes came in %s: %.0f a second of %d", size, took, rate, most)
	}
}
