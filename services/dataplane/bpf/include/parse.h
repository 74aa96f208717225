/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Bytes to fields: bounds are checked here and nowhere else. No maps. */
#ifndef PLEXUS_PARSE_H
#define PLEXUS_PARSE_H

#undef THIS_FILE
#define THIS_FILE FILE_PARSE

/* The packet that an ICMP error is about, as the error quotes it. */
struct quoted {
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
	__u32 l3; /* offsets of its headers */
	__u32 l4;
	__u8 protocol;
	__u8 icmp_type;
};

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_FLAGS_OFFSET 13
#define IP4_OFFSET 0x1fff /* of a fragment, in 8 bytes */
#define IP4_MORE 0x2000
#define IP4_DONT 0x4000 /* fragment it */
#define IP6_OFFSET 0xfff8
#define IP6_MORE 1
#define EXTENSIONS_MAX 6 /* RFC 8200, 4.1 knows no more kinds */

#define IP4_LOOSE_ROUTE 131 /* options that name the routers to pass, and the last destination (RFC 791) */
#define IP4_STRICT_ROUTE 137
#define IP4_END 0
#define IP4_NOP 1
#define IP4_OPTIONS_MAX 40
#define L4_MAX 1023 /* bytes before the transport header, a mask; nobody honest has more */
#define L4_BYTES 8 /* ports, or ICMP type, code and identifier; a UDP or ICMP header is no shorter */

/* `bytes` of the packet from the start can be read directly afterwards, or it is shorter. */
static __always_inline bool can_read(struct __sk_buff *skb, __u64 bytes)
{
	if ((void *)(long)skb->data + bytes <= (void *)(long)skb->data_end)
		return true;
	/* Headers may lie outside the linear part, for example after a device has split them off. */
	return bytes <= skb->len && bpf_skb_pull_data(skb, bytes) == 0;
}

static __always_inline bool is_icmp(__u8 protocol)
{
	return (IPV4_ENABLED && protocol == IPPROTO_ICMP) || (IPV6_ENABLED && protocol == IPPROTO_ICMP6);
}

static __always_inline __u8 icmp_kind(__u8 protocol, __u8 type)
{
	if (IPV4_ENABLED && protocol == IPPROTO_ICMP) {
		if (type == ICMP_ECHO)
			return ICMP_IS_ECHO;
		if (type == ICMP_ECHOREPLY)
			return ICMP_IS_REPLY;
		if (type == ICMP_DEST_UNREACH || type == ICMP_SOURCE_QUENCH || type == ICMP_REDIRECT ||
		    type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB)
			return ICMP_IS_ERROR;
		return ICMP_IS_NONE;
	}
	if (type <= ICMP6_ERROR_LAST)
		return ICMP_IS_ERROR;
	if (type == ICMP6_ECHO)
		return ICMP_IS_ECHO;
	if (type == ICMP6_ECHOREPLY)
		return ICMP_IS_REPLY;
	if ((type >= ICMP6_LISTENER_QUERY && type <= ICMP6_REDIRECT) || type == ICMP6_LISTENER_REPORT)
		return ICMP_IS_LINK;
	return ICMP_IS_NONE;
}

/* The port of the end that answers an echo. No two echoes in opposite directions have one pair of ends in common, as they
 * would with a constant (identifier 0 both ways). */
static __always_inline __be16 answering_port(__be16 identifier)
{
	return bpf_htons(bpf_ntohs(identifier) + 1);
}

/* ICMP has no ports: what stands for them in a connection's key. The two differ always, so that the same type the other
 * way is no reply; an echo's reply, and nothing else, has the echo's pair turned round. */
static __always_inline void icmp_ports(__u8 kind, __u8 type, __be16 identifier, __be16 *source, __be16 *destination)
{
	if (kind == ICMP_IS_ECHO) {
		*source = identifier;
		*destination = answering_port(identifier);
	} else if (kind == ICMP_IS_REPLY) {
		*source = answering_port(identifier);
		*destination = identifier;
	} else { /* what lets one type pass opens no other */
		*source = bpf_htons(type);
		*destination = bpf_htons(0xff00 | type);
	}
}

/* To the quoted packet's transport header. The offset is kept in `p`, whose values the verifier does not follow, or it
 * walks what comes after once for every row of headers. */
static __always_inline bool skip_quoted_extensions(struct __sk_buff *skb, struct packet *p, struct quoted *q, __u8 next)
{
	p->quoted_l4 = q->l3 + sizeof(struct ip6);
	for (int i = 0; i < EXTENSIONS_MAX; i++) { /* bounded loops: kernel 5.3 */
		struct ip6_extension extension;
		struct ip6_fragment fragment;

		if (next == IP6_FRAGMENT) {
			if (bpf_skb_load_bytes(skb, p->quoted_l4, &fragment, sizeof(fragment)))
				return REFUSE(p, DROP_INVALID);
			if (fragment.offset & bpf_htons(IP6_OFFSET))
				return REFUSE(p, DROP_UNKNOWN_CT);
			p->quoted_l4 += sizeof(fragment);
			next = fragment.next;
		} else if (next == IP6_HOP_BY_HOP || next == IP6_OPTIONS) {
			if (bpf_skb_load_bytes(skb, p->quoted_l4, &extension, sizeof(extension)))
				return REFUSE(p, DROP_INVALID);
			p->quoted_l4 += 8 + extension.more * 8;
			next = extension.next;
		} else {
			break;
		}
	}
	q->protocol = next; /* of an extension after all: no connection has that */
	q->l4 = p->quoted_l4;
	return true;
}

/* The packet inside an ICMP error (RFC 792, RFC 4443): its header and 8 bytes, sent by whom the error goes to. */
static __always_inline bool parse_quoted(struct __sk_buff *skb, struct packet *p, struct quoted *q)
{
	struct {
		__be16 source_port, destination_port; /* or ICMP type, code and checksum */
		__be16 identifier, rest;
	} l4;

	q->l3 = p->l4 + sizeof(struct icmp);
	if (!IPV4_ENABLED || p->is_ip6) {
		struct ip6 ip;

		if (bpf_skb_load_bytes(skb, q->l3, &ip, sizeof(ip)) || IP6_VERSION(&ip) != 6)
			return REFUSE(p, DROP_INVALID);
		set_ip6(&q->source, ip.source);
		set_ip6(&q->destination, ip.destination);
		if (!skip_quoted_extensions(skb, p, q, ip.next))
			return false;
	} else {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, q->l3, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
			return REFUSE(p, DROP_INVALID);
		/* A later fragment names no ports: nobody can say which connection it belongs to. IPv6 likewise. */
		if (ip.frag_off & bpf_htons(IP4_OFFSET))
			return REFUSE(p, DROP_UNKNOWN_CT);
		set_ip4(&q->source, ip.saddr);
		set_ip4(&q->destination, ip.daddr);
		q->protocol = ip.protocol;
		q->l4 = q->l3 + ip.ihl * 4;
	}
	if (bpf_skb_load_bytes(skb, q->l4, &l4, sizeof(l4)))
		return REFUSE(p, DROP_INVALID);
	q->source_port = l4.source_port;
	q->destination_port = l4.destination_port;
	if (is_icmp(q->protocol)) {
		q->icmp_type = bpf_ntohs(l4.source_port) >> 8;
		icmp_ports(icmp_kind(q->protocol, q->icmp_type), q->icmp_type, l4.identifier, &q->source_port,
		           &q->destination_port);
	}
	return true;
}

static __always_inline bool parse_l4(struct __sk_buff *skb, struct packet *p)
{
	__u32 header = p->protocol == IPPROTO_TCP ? sizeof(struct tcphdr) : L4_BYTES;
	__u64 at = p->l4;
	__u8 *l4;

	if (p->fragment == FRAGMENT_LATER)
		return true;
	if (at > L4_MAX)
		return REFUSE(p, DROP_INVALID);
	asm volatile("%0 &= %1"
	             : "+r"(at)
	             : "i"(L4_MAX)); /* or the verifier loses the bound in the compiler's copies */
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP && !is_icmp(p->protocol) &&
	    p->protocol != IPPROTO_SCTP)
		return REFUSE(p, DROP_UNKNOWN_L4);
	/* A first fragment that leaves the flags to the second is an attack (RFC 1858), also with padding in their place. */
	if (!can_read(skb, at + header) || (p->fragment && p->bytes + ETH_HLEN < at + header))
		return REFUSE(p, DROP_INVALID);
	l4 = (void *)(long)skb->data + at;
	if ((void *)(l4 + L4_BYTES) > (void *)(long)skb->data_end)
		return REFUSE(p, DROP_INVALID);
	if (is_icmp(p->protocol)) {
		p->icmp_type = l4[0];
		p->icmp_kind = icmp_kind(p->protocol, p->icmp_type);
		icmp_ports(p->icmp_kind, p->icmp_type, *(__be16 *)(l4 + 4), &p->source_port, &p->destination_port);
		/* Errors are too short to need fragments; of what belongs to a link they are forbidden (RFC 6980). */
		if (p->fragment && p->icmp_kind >= ICMP_IS_ERROR)
			return REFUSE(p, DROP_INVALID);
		return true;
	}
	p->source_port = *(__be16 *)l4;
	p->destination_port = *(__be16 *)(l4 + 2);
	if (p->protocol == IPPROTO_TCP) {
		if ((void *)(l4 + TCP_FLAGS_OFFSET + 1) > (void *)(long)skb->data_end)
			return REFUSE(p, DROP_INVALID);
		p->tcp_flags = l4[TCP_FLAGS_OFFSET];
	}
	return true;
}

/* Does an option send the packet by way of others? Policy would not see its last destination. */
static __always_inline bool is_source_routed(struct __sk_buff *skb, __u32 bytes)
{
	__u8 options[IP4_OPTIONS_MAX + 1] = {};
	__u8 rest = 0; /* bytes of the option in hand that are left */

	if (bytes == 0 || bytes > IP4_OPTIONS_MAX ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + sizeof(struct iphdr), options, bytes))
		return false;
#pragma unroll /* the verifier follows an index that is known */
	for (int i = 0; i < IP4_OPTIONS_MAX; i++) {
		if (rest) {
			rest--;
			continue;
		}
		if (options[i] == IP4_LOOSE_ROUTE || options[i] == IP4_STRICT_ROUTE)
			return true;
		if (options[i] == IP4_END)
			return false;
		if (options[i] != IP4_NOP && options[i + 1] > 1)
			rest = options[i + 1] - 1;
	}
	return false;
}

static __always_inline bool parse_ip4(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr *ip;
	__u32 header;

	if (!can_read(skb, ETH_HLEN + sizeof(*ip)))
		return REFUSE(p, DROP_INVALID);
	ip = (void *)(long)skb->data + ETH_HLEN;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return REFUSE(p, DROP_INVALID);
	set_ip4(&p->source, ip->saddr);
	set_ip4(&p->destination, ip->daddr);
	header = ip->ihl * 4;
	p->bytes = bpf_ntohs(ip->tot_len); /* 0 with TCP segments of over 64 KiB, which a device will cut */
	if (ip->version != 4 || header < sizeof(*ip) || (p->bytes < header && (p->bytes || !skb->gso_size)))
		return REFUSE(p, DROP_INVALID);
	p->protocol = ip->protocol;
	if (ip->protocol == IPPROTO_ICMP6) /* means nothing here */
		return REFUSE(p, DROP_UNKNOWN_L4);
	p->l4 = ETH_HLEN + header;
	if (ip->frag_off & bpf_htons(IP4_MORE | IP4_OFFSET)) {
		p->fragment = ip->frag_off & bpf_htons(IP4_OFFSET) ? FRAGMENT_LATER : FRAGMENT_FIRST;
		p->identification = ip->id;
	}
	if (header > sizeof(*ip) && is_source_routed(skb, header - sizeof(*ip)))
		return REFUSE(p, DROP_INVALID);
	return true;
}

/* Walk to the transport header. Routing headers are refused: the address that policy sees would not be the last one. */
static __always_inline bool skip_extensions(struct __sk_buff *skb, struct packet *p, __u8 next)
{
	for (int i = 0; i < EXTENSIONS_MAX; i++) { /* bounded loops: kernel 5.3 */
		struct ip6_extension extension;
		struct ip6_fragment fragment;

		if (next == IP6_FRAGMENT) {
			if (bpf_skb_load_bytes(skb, p->l4, &fragment, sizeof(fragment)) || p->fragment)
				return REFUSE(p, DROP_EXTENSION_HEADER);
			if (fragment.offset & bpf_htons(IP6_OFFSET))
				p->fragment = FRAGMENT_LATER;
			else if (fragment.offset & bpf_htons(IP6_MORE))
				p->fragment = FRAGMENT_FIRST;
			p->identification = fragment.identification;
			p->l4 += sizeof(fragment);
			next = fragment.next;
			if (p->fragment == FRAGMENT_LATER) /* what follows is payload */
				break;
		} else if (next == IP6_HOP_BY_HOP || next == IP6_OPTIONS) {
			if (bpf_skb_load_bytes(skb, p->l4, &extension, sizeof(extension)))
				return REFUSE(p, DROP_EXTENSION_HEADER);
			p->l4 += 8 + extension.more * 8;
			next = extension.next;
		} else {
			break;
		}
	}
	p->protocol = next;
	if (p->fragment == FRAGMENT_LATER)
		return true;
	if (next == IP6_HOP_BY_HOP || next == IP6_OPTIONS || next == IP6_ROUTING || next == IP6_FRAGMENT)
		return REFUSE(p, DROP_EXTENSION_HEADER);
	return next == IPPROTO_ICMP ? REFUSE(p, DROP_UNKNOWN_L4) : true; /* IPv4's means nothing here */
}

static __always_inline bool parse_ip6(struct __sk_buff *skb, struct packet *p)
{
	struct ip6 *ip;
	__u8 next;

	p->is_ip6 = 1;
	if (!can_read(skb, ETH_HLEN + sizeof(*ip)))
		return REFUSE(p, DROP_INVALID);
	ip = (void *)(long)skb->data + ETH_HLEN;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return REFUSE(p, DROP_INVALID);
	set_ip6(&p->source, ip->source);
	set_ip6(&p->destination, ip->destination);
	if (IP6_VERSION(ip) != 6)
		return REFUSE(p, DROP_INVALID);
	/* Not on any wire (RFC 4291, 2.5.5.2), and IPv4 to every map here. */
	if (is_ip4(&p->source) || is_ip4(&p->destination))
		return REFUSE(p, DROP_INVALID);
	next = ip->next;
	p->bytes = bpf_ntohs(ip->payload_bytes) + sizeof(*ip);
	p->l4 = ETH_HLEN + sizeof(*ip);
	p->protocol = next;
	if (next == IP6_HOP_BY_HOP || next == IP6_OPTIONS || next == IP6_ROUTING || next == IP6_FRAGMENT)
		return skip_extensions(skb, p, next);
	return next == IPPROTO_ICMP ? REFUSE(p, DROP_UNKNOWN_L4) : true;
}

/* Where a packet (`is_ip`) goes, before anything else of it is looked at. false: it is too short to say. */
static __always_inline bool read_destination(struct __sk_buff *skb, struct address *to)
{
	if (!IPV6_ENABLED || (IPV4_ENABLED && skb->protocol == bpf_htons(ETH_P_IP))) {
		struct iphdr *ip;

		if (!can_read(skb, ETH_HLEN + sizeof(*ip)))
			return false;
		ip = (void *)(long)skb->data + ETH_HLEN;
		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return false;
		set_ip4(to, ip->daddr);
	} else {
		struct ip6 *ip;

		if (!can_read(skb, ETH_HLEN + sizeof(*ip)))
			return false;
		ip = (void *)(long)skb->data + ETH_HLEN;
		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return false;
		set_ip6(to, ip->destination);
	}
	return true;
}

/* Of a family that this node speaks. */
static __always_inline bool is_ip(struct __sk_buff *skb)
{
	return (IPV4_ENABLED && skb->protocol == bpf_htons(ETH_P_IP)) ||
	       (IPV6_ENABLED && skb->protocol == bpf_htons(ETH_P_IPV6));
}

/* Fill `p` from the IP headers of a packet (`is_ip`) that begins with an Ethernet header; the transport's are left. */
static __always_inline bool parse_network(struct __sk_buff *skb, struct packet *p)
{
	if (!IPV6_ENABLED || (IPV4_ENABLED && skb->protocol == bpf_htons(ETH_P_IP)))
		return parse_ip4(skb, p);
	return parse_ip6(skb, p);
}

#endif
