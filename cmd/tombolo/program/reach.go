package program

import (
	"crypto/tls"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/tombolo-vdc/tombolo/handlers/trust"
)

// openTrust opens the installation's authority, and the control plane's own
// certificate where it is reached from other hosts.
func (p *Program) openTrust() (err error) {
	if p.authority, err = trust.OpenAuthority(p.dir("keys")); err != nil || trust.Local(p.config.HTTP) && trust.Local(p.config.NATS) {
		return err
	}
	names, err := p.names()
	if err != nil {
		return err
	}
	certificate, err := p.authority.Control(p.dir("keys"), names)
	p.tls = &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{certificate}}
	return err
}

// names are all by which this host may be asked for, the preferred one first.
func (p *Program) names() ([]string, error) {
	names := slices.Clone(p.config.Advertise)
	for _, listen := range []string{p.config.HTTP, p.config.NATS} {
		if host, _, err := net.SplitHostPort(listen); err == nil && host != "" && !unspecified(host) {
			names = append(names, host)
		}
	}
	if host, err := os.Hostname(); err == nil {
		names = append(names, host)
	}
	own, err := net.InterfaceAddrs()
	for _, a := range own {
		if ip, ok := a.(*net.IPNet); ok {
			names = append(names, ip.IP.String())
		}
	}
	return names, err
}

func unspecified(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && ip.IsUnspecified()
}

// advertised is a listener's address as others reach it: by the name they were
// told to use, or by the host's own where it listens on all its addresses.
func (p *Program) advertised(address string) string {
	host, port, err := net.SplitHostPort(address)
	switch {
	case err != nil || trust.Local(host):
		return address
	case len(p.config.Advertise) > 0:
		return net.JoinHostPort(p.config.Advertise[0], port)
	case !unspecified(host):
		return address
	}
	if name, err := os.Hostname(); err == nil {
		return net.JoinHostPort(name, port)
	}
	return address
}

func (p *Program) busURL() string {
	address := p.advertised(strings.TrimPrefix(p.bus.URL(), "nats://"))
	if trust.Local(address) {
		return "nats://" + address
	}
	return "tls://" + address
}

// told is what clients need to know of the authority: nothing while all is on loopback.
func (p *Program) told() string {
	if p.tls == nil {
		return ""
	}
	return string(p.authority.PEM())
}
