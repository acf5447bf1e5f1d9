package dns

import (
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// Suffix is the domain that all networks are in.
const Suffix = "blixard."

// ttlSeconds is how long a guest may remember an address: a VM that moves keeps it,
// so this bounds how long a deleted one is remembered.
const ttlSeconds = 5

// Zone holds the names of one network. It is not changed after it was made.
type Zone struct {
	domain  string // with a dot at the end
	forward map[string][]netip.Addr
	reverse map[string]string
	subnets []netip.Prefix
	guests  map[netip.Addr]bool
	soa     *dns.SOA
}

// Host is a VM with its names and addresses. A link-local address is no answer to a
// name; it only tells who asks.
type Host struct {
	Names     []string
	Addresses []netip.Addr
	// Local: it may ask here.
	Local bool
}

// NewZone makes the zone of a network; the first of a host's names is what its
// addresses lead back to.
func NewZone(network string, subnets []netip.Prefix, hosts []Host) *Zone {
	z := &Zone{
		domain: dns.CanonicalName(network + "." + Suffix), forward: map[string][]netip.Addr{}, reverse: map[string]string{},
		subnets: subnets, guests: map[netip.Addr]bool{},
	}
	z.soa = &dns.SOA{
		Hdr: dns.RR_Header{Name: z.domain, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttlSeconds},
		Ns:  "gateway." + z.domain, Mbox: "hostmaster." + z.domain, Serial: 1,
		Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttlSeconds,
	}
	for _, h := range hosts {
		for _, name := range h.Names {
			full := dns.CanonicalName(name + "." + z.domain)
			for _, ip := range h.Addresses {
				if !ip.IsLinkLocalUnicast() {
					z.forward[full] = append(z.forward[full], ip)
				}
			}
		}
		for _, ip := range h.Addresses {
			if len(h.Names) > 0 && !ip.IsLinkLocalUnicast() {
				if arpa, err := dns.ReverseAddr(ip.String()); err == nil {
					z.reverse[arpa] = h.Names[0] + "." + z.domain
				}
			}
			if h.Local {
				z.guests[ip] = true
			}
		}
	}
	return z
}

// Domain is the network's, without the dot at the end.
func (z *Zone) Domain() string { return strings.TrimSuffix(z.domain, ".") }

// Answer gives the reply to a query, which takes at most so many bytes. forward
// says that the query is for others to answer; a nil reply without it, that it gets
// none.
func (z *Zone) Answer(packet []byte, bytesMax int) (reply []byte, forward bool) {
	var query dns.Msg
	if query.Unpack(packet) != nil || query.Response {
		return nil, false
	}
	var answer dns.Msg
	answer.SetReply(&query)
	if opt := query.IsEdns0(); opt != nil {
		answer.SetEdns0(max(opt.UDPSize(), dns.MinMsgSize), false)
		if opt.Version() != 0 {
			answer.Rcode = dns.RcodeBadVers
			return pack(&answer, bytesMax), false
		}
	}
	if query.Opcode != dns.OpcodeQuery || len(query.Question) != 1 {
		answer.Rcode = dns.RcodeNotImplemented
		if query.Opcode == dns.OpcodeQuery {
			answer.Rcode = dns.RcodeFormatError
		}
		return pack(&answer, bytesMax), false
	}
	if forward = z.resolve(query.Question[0], &answer); forward {
		return nil, true
	}
	return pack(&answer, bytesMax), false
}

// resolve fills in the answer, or leaves the question to others.
func (z *Zone) resolve(q dns.Question, answer *dns.Msg) (forward bool) {
	name := dns.CanonicalName(q.Name)
	if q.Qclass != dns.ClassINET && q.Qclass != dns.ClassANY {
		answer.Rcode = dns.RcodeRefused
		return false
	}
	answer.Authoritative, answer.RecursionAvailable = true, true
	if dns.CountLabel(name) == 1 && name != Suffix {
		// A bare name. What is not a VM's is not asked of others: it is nobody's
		// business outside what guests look for inside.
		if q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA && q.Qtype != dns.TypeANY {
			return true
		}
		z.addresses(q, name+z.domain, answer)
		return false
	}
	if dns.IsSubDomain(Suffix, name) {
		z.addresses(q, name, answer)
		return false
	}
	if ip, ok := reverseOf(name); ok {
		for _, s := range z.subnets {
			if s.Contains(ip) {
				z.pointer(q, name, answer)
				return false
			}
		}
	}
	return true
}

// addresses answers with those of a full name.
func (z *Zone) addresses(q dns.Question, full string, answer *dns.Msg) {
	addresses, known := z.forward[full]
	switch {
	case full == z.domain && (q.Qtype == dns.TypeSOA || q.Qtype == dns.TypeANY):
		answer.Answer = append(answer.Answer, z.soa)
		return
	case !known && full != z.domain && full != Suffix:
		answer.Rcode = dns.RcodeNameError
	}
	for _, ip := range addresses {
		header := dns.RR_Header{Name: q.Name, Class: dns.ClassINET, Ttl: ttlSeconds}
		switch {
		case ip.Is4() && (q.Qtype == dns.TypeA || q.Qtype == dns.TypeANY):
			header.Rrtype = dns.TypeA
			answer.Answer = append(answer.Answer, &dns.A{Hdr: header, A: ip.AsSlice()})
		case ip.Is6() && (q.Qtype == dns.TypeAAAA || q.Qtype == dns.TypeANY):
			header.Rrtype = dns.TypeAAAA
			answer.Answer = append(answer.Answer, &dns.AAAA{Hdr: header, AAAA: ip.AsSlice()})
		}
	}
	if len(answer.Answer) == 0 {
		answer.Ns = []dns.RR{z.soa}
	}
}

// pointer answers with the name of an address.
func (z *Zone) pointer(q dns.Question, name string, answer *dns.Msg) {
	to, known := z.reverse[name]
	if known && (q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY) {
		answer.Answer = []dns.RR{&dns.PTR{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypePTR, Class: dns.ClassINET, Ttl: ttlSeconds}, Ptr: to}}
		return
	}
	if !known {
		answer.Rcode = dns.RcodeNameError
	}
	answer.Ns = []dns.RR{z.soa}
}

// reverseOf gives the address of a name in in-addr.arpa or ip6.arpa.
func reverseOf(name string) (netip.Addr, bool) {
	if rest, ok := strings.CutSuffix(name, ".in-addr.arpa."); ok {
		parts := strings.Split(rest, ".")
		if len(parts) != 4 {
			return netip.Addr{}, false
		}
		ip, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
		return ip, err == nil && ip.Is4()
	}
	rest, ok := strings.CutSuffix(name, ".ip6.arpa.")
	digits := strings.Split(rest, ".")
	if !ok || len(digits) != 32 {
		return netip.Addr{}, false
	}
	var text strings.Builder
	for i := 31; i >= 0; i-- {
		if len(digits[i]) != 1 {
			return netip.Addr{}, false
		}
		text.WriteString(digits[i])
		if i%4 == 0 && i > 0 {
			text.WriteByte(':')
		}
	}
	ip, err := netip.ParseAddr(text.String())
	return ip, err == nil
}

// pack gives the bytes of an answer, cut to what the asker takes.
func pack(answer *dns.Msg, bytesMax int) []byte {
	answer.Truncate(bytesMax)
	out, err := answer.Pack()
	if err != nil {
		return nil
	}
	return out
}

// sizeOf is the largest answer by UDP to a query.
func sizeOf(packet []byte) int {
	var query dns.Msg
	if query.Unpack(packet) == nil {
		if opt := query.IsEdns0(); opt != nil {
			return min(max(int(opt.UDPSize()), dns.MinMsgSize), udpBytesMax)
		}
	}
	return dns.MinMsgSize
}

// refusal answers a query that can't be served now.
func refusal(packet []byte, rcode int) []byte {
	var query, answer dns.Msg
	if query.Unpack(packet) != nil {
		return nil
	}
	answer.SetRcode(&query, rcode)
	return pack(&answer, dns.MinMsgSize)
}
