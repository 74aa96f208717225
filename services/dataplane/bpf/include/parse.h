/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Bytes to fields: bounds are checked here and nowhere else. No maps. */
#ifndef PLEXUS_PARSE_H
#define PLEXUS_PARSE_H

#undef THIS_FILE
#define THIS_FILE FILE_PARSE

/* What is known of the packet in hand, and what was decided about it. */
struct packet {
	__u32 l4; /* offset of the transport header */
	__be32 source;
	__be32 destination;
	__be16 source_port; /* ICMP: the identifier at the end that asks, 0 at the one that answers; see `icmp_ports` */
	__be16 destination_port;
	__u8 protocol;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 is_error; /* an ICMP error: `about` is the packet that caused it */
	__u8 direction;
	__u8 reason; /* enum drop_reason */
	__u8 file;
	__u8 judged_new; /* a policy has allowed a new connection: worth an event */
	__u16 line;
	__u16 pad;
	__u32 now; /* tick */
	__u32 epoch; /* read before any policy, so that a change in between is noticed at the next packet */
	__u64 time; /* coarse ns */
	__u32 policy; /* that decided, and the entry's cookie */
	__u32 cookie;
	__u32 source_identity; /* 0: not needed so far */
	__u32 destination_identity;
	__u32 tunnel_identity; /* from the tunnel, which the overlay program fills */
	__be32 tunnel_from; /* the node that sent it */
	struct {
		__be32 source;
		__be32 destination;
		__be16 source_port;
		__be16 destination_port;
		__u8 protocol;
	} about;
};

/* Refuse the packet: the reason, and where it was decided, go into the counter and the event. */
#define REFUSE(p, why)                 \
	({                             \
		(p)->reason = (why);   \
		(p)->file = THIS_FILE; \
		(p)->line = __LINE__;  \
		false;                 \
	})

#define DROP(p, why)            \
	({                      \
		REFUSE(p, why); \
		TC_ACT_SHOT;    \
	})

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10
#define TCP_FLAGS_OFFSET 13
#define IP_FRAGMENT 0x3fff /* more fragments, or an offset */

#define L4_BYTES 8 /* ports, or ICMP type, code and identifier; a UDP or ICMP header is no shorter */

/* `bytes` of the packet from the start can be read directly afterwards, or it is shorter. */
static __always_inline bool can_read(struct __sk_buff *skb, __u32 bytes)
{
	if ((void *)(long)skb->data + bytes <= (void *)(long)skb->data_end)
		return true;
	/* Headers may lie outside the linear part, for example after a device has split them off. */
	return bytes <= skb->len && bpf_skb_pull_data(skb, bytes) == 0;
}

static __always_inline bool is_icmp_error(__u8 type)
{
	return type == ICMP_DEST_UNREACH || type == ICMP_SOURCE_QUENCH || type == ICMP_REDIRECT ||
	       type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETERPROB;
}

/* ICMP has no ports: what stands for them in a connection's key. The two differ always, so that the same type the other
 * way is no reply; an echo's reply, and nothing else, has the echo's pair turned round. */
static __always_inline void icmp_ports(__u8 type, __be16 identifier, __be16 *source, __be16 *destination)
{
	if (type == ICMP_ECHO) {
		*source = identifier;
		*destination = 0;
	} else if (type == ICMP_ECHOREPLY) {
		*source = 0;
		*destination = identifier;
	} else { /* what lets one type pass opens no other */
		*source = bpf_htons(type);
		*destination = bpf_htons(0xff00 | type);
	}
}

/* The packet inside an ICMP error (RFC 792): its header and 8 bytes, sent by whom the error goes to. */
static __always_inline bool parse_about(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr ip;
	struct {
		__be16 source_port, destination_port; /* or ICMP type, code and checksum */
		__be16 identifier, rest;
	} l4;
	__u32 inner = p->l4 + sizeof(struct icmp);

	if (bpf_skb_load_bytes(skb, inner, &ip, sizeof(ip)) || ip.ihl < 5)
		return REFUSE(p, DROP_INVALID);
	if (bpf_skb_load_bytes(skb, inner + ip.ihl * 4, &l4, sizeof(l4)))
		return REFUSE(p, DROP_INVALID);
	p->about.source = ip.saddr;
	p->about.destination = ip.daddr;
	p->about.protocol = ip.protocol;
	p->about.source_port = l4.source_port;
	p->about.destination_port = l4.destination_port;
	if (ip.protocol == IPPROTO_ICMP)
		icmp_ports(bpf_ntohs(l4.source_port) >> 8, l4.identifier, &p->about.source_port,
		           &p->about.destination_port);
	return true;
}

/* Fill `p` from an IPv4 packet that begins with an Ethernet header. */
static __always_inline bool parse_ip4(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr *ip;
	__u8 *l4;
	__u32 header;

	if (!can_read(skb, ETH_HLEN + sizeof(*ip) + L4_BYTES))
		return REFUSE(p, DROP_INVALID);
	ip = (void *)(long)skb->data + ETH_HLEN;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return REFUSE(p, DROP_INVALID);
	header = ip->ihl * 4;
	if (ip->version != 4 || header < sizeof(*ip) || bpf_ntohs(ip->tot_len) < header)
		return REFUSE(p, DROP_INVALID);
	p->source = ip->saddr;
	p->destination = ip->daddr;
	p->protocol = ip->protocol;
	p->l4 = ETH_HLEN + header;
	if (ip->frag_off & bpf_htons(IP_FRAGMENT))
		return REFUSE(p, DROP_FRAGMENT);
	if (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP && ip->protocol != IPPROTO_ICMP)
		return REFUSE(p, DROP_UNKNOWN_L4);

	if (!can_read(skb, p->l4 + (ip->protocol == IPPROTO_TCP ? sizeof(struct tcphdr) : L4_BYTES)))
		return REFUSE(p, DROP_INVALID);
	l4 = (void *)(long)skb->data + p->l4;
	if ((void *)(l4 + L4_BYTES) > (void *)(long)skb->data_end)
		return REFUSE(p, DROP_INVALID);
	if (p->protocol == IPPROTO_ICMP) {
		p->icmp_type = l4[0];
		if (is_icmp_error(p->icmp_type)) {
			p->is_error = 1;
			return parse_about(skb, p);
		}
		icmp_ports(p->icmp_type, *(__be16 *)(l4 + 4), &p->source_port, &p->destination_port);
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

#endif
