//go:build !linux

package networkstest

import "github.com/tombolo-vdc/tombolo/handlers/region/networks"

// openTap fails: only Linux has these taps.
func openTap(at networks.Attachment) (wire, error) {
	return nil, networks.Errorf(networks.Unsupported, "tap %s: this system has none", at.Tap)
}
