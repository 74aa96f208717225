/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Change an address and a port, and every checksum that covers them. */
#ifndef PLEXUS_REWRITE_H
#define PLEXUS_REWRITE_H

#undef THIS_FILE
#define THIS_FILE FILE_NAT

#define IP_SOURCE (ETH_HLEN + offsetof(struct iphdr, saddr))
#define IP_DESTINATION (ETH_HLEN + offsetof(struct iphdr, daddr))
#define IP_CHECK (ETH_HLEN + offsetof(struct iphdr, check))

/* `address_at` is IP_SOURCE or IP_DESTINATION. For ICMP `old_port` is the identifier and only it is covered. */
static __always_inline bool rewrite(struct __sk_buff *skb, struct packet *p, __u32 address_at, __be32 old, __be32 new,
                                    __be16 old_port, __be16 new_port)
{
	__u32 port_at = p->l4 + (address_at == IP_SOURCE ? 0 : 2);
	__u32 check_at = p->l4 + offsetof(struct tcphdr, check);
	__u64 flags = 0;

	if (p->protocol == IPPROTO_UDP) {
		check_at = p->l4 + offsetof(struct udphdr, check);
		flags = BPF_F_MARK_MANGLED_0; /* a checksum of 0 means "none": leave it, and never make one */
	} else if (p->protocol == IPPROTO_ICMP) {
		check_at = p->l4 + offsetof(struct icmp, check);
		port_at = p->l4 + offsetof(struct icmp, identifier);
	}
	if (p->protocol != IPPROTO_ICMP &&
	    bpf_l4_csum_replace(skb, check_at, old, new, flags | BPF_F_PSEUDO_HDR | sizeof(new)))
		return REFUSE(p, DROP_WRITE_ERROR);
	if (old_port != new_port && (bpf_l4_csum_replace(skb, check_at, old_port, new_port, flags | sizeof(new_port)) ||
	                             bpf_skb_store_bytes(skb, port_at, &new_port, sizeof(new_port), 0)))
		return REFUSE(p, DROP_WRITE_ERROR);
	if (bpf_l3_csum_replace(skb, IP_CHECK, old, new, sizeof(new)) ||
	    bpf_skb_store_bytes(skb, address_at, &new, sizeof(new), 0))
		return REFUSE(p, DROP_WRITE_ERROR);
	return true;
}

static __always_inline bool rewrite_source(struct __sk_buff *skb, struct packet *p, __be32 address, __be16 port)
{
	if (!rewrite(skb, p, IP_SOURCE, p->source, address, p->source_port, port))
		return false;
	p->source = address;
	p->source_port = port;
	return true;
}

static __always_inline bool rewrite_destination(struct __sk_buff *skb, struct packet *p, __be32 address, __be16 port)
{
	if (!rewrite(skb, p, IP_DESTINATION, p->destination, address, p->destination_port, port))
		return false;
	p->destination = address;
	p->destination_port = port;
	return true;
}

/* A reply of a backend: the client knows it by the address of the service that it called. */
static __always_inline bool from_service(struct __sk_buff *skb, struct packet *p, struct connection *c)
{
	return !(c->flags & CT_TRANSLATED) || rewrite_source(skb, p, c->service_address, c->service_port);
}

#endif
