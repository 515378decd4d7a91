package events

// EdgeRule decides on new connections that cross an environment's edge. From
// and To name networks, machines and vApps of the environment, CIDRs, or
// "outside"; a vApp is secured together.
type EdgeRule struct {
	Action   string   `json:"action" enum:"allow,deny"`
	Protocol string   `json:"protocol,omitempty" enum:"tcp,udp,icmp"` // all unless said otherwise
	From     []string `json:"from,omitempty"`                         // everywhere unless said otherwise
	To       []string `json:"to,omitempty"`
	Ports    []string `json:"ports,omitempty"` // of the destination: "22", "8000-8100"
}

// EdgeOpening is what is let in from the outside on one public address:
// "tcp/80", "tcp/8080:80" (the machine's port behind the colon), "tcp/2000-2010".
type EdgeOpening struct {
	Resource string   `json:"resource"` // the public address, as maps call it
	Ports    []string `json:"ports"`
}
