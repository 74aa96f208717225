/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Change an address and a port, and every checksum that covers them. */
#ifndef PLEXUS_REWRITE_H
#define PLEXUS_REWRITE_H

#undef THIS_FILE
#define THIS_FILE FILE_REWRITE

#define IP4_SOURCE offsetof(struct iphdr, saddr)
#define IP4_DESTINATION offsetof(struct iphdr, daddr)
#define IP6_SOURCE offsetof(struct ip6, source)
#define IP6_DESTINATION offsetof(struct ip6, destination)

/* Write an address into the IP header at `l3`, and mend that header's checksum. */
static __always_inline bool write_address(struct __sk_buff *skb, bool is_ip6, __u32 l3, bool is_source,
                                          const struct address *new, __s64 difference)
{
	if (is_ip6)
		return !bpf_skb_store_bytes(skb, l3 + (is_source ? IP6_SOURCE : IP6_DESTINATION), (void *)new->word, 16,
		                            0);
	return !bpf_l3_csum_replace(skb, l3 + offsetof(struct iphdr, check), 0, difference, 0) &&
	       !bpf_skb_store_bytes(skb, l3 + (is_source ? IP4_SOURCE : IP4_DESTINATION), (void *)&new->word[3], 4, 0);
}

/* For ICMP a port is the identifier. Of a later fragment only the IP header is ours: the checksum is in the first. */
static __always_inline bool rewrite(struct __sk_buff *skb, struct packet *p, bool is_source, const struct address *new,
                                    __be16 new_port)
{
	struct address *old = is_source ? &p->source : &p->destination;
	__be16 *old_port = is_source ? &p->source_port : &p->destination_port;
	__s64 difference = bpf_csum_diff(old->word, 16, (__be32 *)new->word, 16, 0);
	__u32 port_at = p->l4 + (is_source ? 0 : 2);
	__u32 check_at = p->l4 + offsetof(struct tcphdr, check);
	__u64 flags = 0;
	bool is_ip6 = IPV6_ENABLED && (!IPV4_ENABLED || p->is_ip6);

	/* Its checksum covers no address, and cannot be mended for a port; later fragments share the first one's fate. */
	if (p->protocol == IPPROTO_SCTP && *old_port != new_port)
		return REFUSE(p, DROP_NAT_PROTOCOL);
	if (p->fragment != FRAGMENT_LATER) {
		if (p->protocol == IPPROTO_UDP) {
			check_at = p->l4 + offsetof(struct udphdr, check);
			flags = BPF_F_MARK_MANGLED_0; /* a checksum of 0 means "none": leave it, and never make one */
		} else if (is_icmp(p->protocol)) {
			check_at = p->l4 + offsetof(struct icmp, check);
			port_at = p->l4 + offsetof(struct icmp, identifier);
		}
		if (p->protocol != IPPROTO_SCTP) {
			/* ICMP over IPv4 alone covers no addresses. */
			if ((is_ip6 || p->protocol != IPPROTO_ICMP) &&
			    bpf_l4_csum_replace(skb, check_at, 0, difference, flags | BPF_F_PSEUDO_HDR))
				return REFUSE(p, DROP_WRITE_ERROR);
			if (*old_port != new_port && p->icmp_kind != ICMP_IS_ERROR &&
			    (bpf_l4_csum_replace(skb, check_at, *old_port, new_port, flags | sizeof(new_port)) ||
			     bpf_skb_store_bytes(skb, port_at, &new_port, sizeof(new_port), 0)))
				return REFUSE(p, DROP_WRITE_ERROR);
		}
	}
	if (!write_address(skb, is_ip6, ETH_HLEN, is_source, new, difference))
		return REFUSE(p, DROP_WRITE_ERROR);
	/* No header checksum takes the change up in the device's sum of the packet. Undoes what l4_csum_replace did to that
	 * (kernels before 6.16 have no flag for IPv6). */
	if (is_ip6)
		bpf_csum_update(skb, difference);
	*old = *new;
	*old_port = new_port;
	if (p->icmp_kind == ICMP_IS_ECHO)
		p->destination_port = answering_port(p->source_port);
	else if (p->icmp_kind == ICMP_IS_REPLY)
		p->source_port = answering_port(p->destination_port);
	return true;
}

static __always_inline bool rewrite_source(struct __sk_buff *skb, struct packet *p, const struct address *address,
                                           __be16 port)
{
	return rewrite(skb, p, true, address, port);
}

static __always_inline bool rewrite_destination(struct __sk_buff *skb, struct packet *p, const struct address *address,
                                                __be16 port)
{
	return rewrite(skb, p, false, address, port);
}

/* One end of the packet that an ICMP error quotes. What the quoted transport checksum covers is cut off: it stays. */
static __always_inline bool rewrite_quoted(struct __sk_buff *skb, struct packet *p, struct quoted *q, bool is_source,
                                           const struct address *new, __be16 new_port)
{
	struct address *old = is_source ? &q->source : &q->destination;
	__be16 *old_port = is_source ? &q->source_port : &q->destination_port;
	__s64 difference = bpf_csum_diff(old->word, 16, (__be32 *)new->word, 16, 0);
	__u32 check_at = p->l4 + offsetof(struct icmp, check);
	__u32 port_at = q->l4 + (is_icmp(q->protocol) ? offsetof(struct icmp, identifier) : is_source ? 0 : 2);
	bool is_ip6 = IPV6_ENABLED && (!IPV4_ENABLED || p->is_ip6);

	/* In IPv4 the quoted header's own checksum takes the address's change up, and the error's sees none. */
	if (is_ip6 && bpf_l4_csum_replace(skb, check_at, 0, difference, 0))
		return REFUSE(p, DROP_WRITE_ERROR);
	if (!write_address(skb, is_ip6, q->l3, is_source, new, difference))
		return REFUSE(p, DROP_WRITE_ERROR);
	if (*old_port != new_port && (bpf_l4_csum_replace(skb, check_at, *old_port, new_port, sizeof(new_port)) ||
	                              bpf_skb_store_bytes(skb, port_at, &new_port, sizeof(new_port), 0)))
		return REFUSE(p, DROP_WRITE_ERROR);
	*old = *new;
	*old_port = new_port;
	return true;
}

/* A reply of a backend: the client knows it by the address of the service that it called, and by its own port. */
static __always_inline bool from_service(struct __sk_buff *skb, struct packet *p, struct connection *c)
{
	if (!(c->flags & CT_TRANSLATED))
		return true;
	return (!c->substitute || to_own_port(skb, p, c)) &&
	       rewrite_source(skb, p, &c->service_address, c->service_port);
}

#endif
