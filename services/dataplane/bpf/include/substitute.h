/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* One source port to two services that lead to one backend, or to a service and to its backend itself: two connections,
 * which the backend, and this node, would take for one. Whichever comes second goes there from another port, a
 * substitute (docs/adr/0023). Both directions know it by a number alone, from which either port follows. */
#ifndef PLEXUS_SUBSTITUTE_H
#define PLEXUS_SUBSTITUTE_H

#undef THIS_FILE
#define THIS_FILE FILE_SUBSTITUTE

#define SUBSTITUTES 8 /* how many there are for each port */
#define PRIVILEGED_PORTS 1024 /* servers ask for one: such a port's substitutes are such ports */
#define OTHER_PORTS (65536 - PRIVILEGED_PORTS) /* a multiple of the former */
/* Those of the ports that Linux gives to who asks for none (32768 to 60999) are outside that range. */
#define SUBSTITUTE_SHIFT(number) (32768 + 439 * (number))

/* The port so many places further, within its range. Without a jump: the verifier walks what follows once. */
static __always_inline __be16 shifted(__be16 port, __u32 places)
{
	__u64 from = bpf_ntohs(port);
	__u64 privileged = (from - PRIVILEGED_PORTS) >> 63;
	__u64 first = PRIVILEGED_PORTS - privileged * PRIVILEGED_PORTS;
	__u64 ports = OTHER_PORTS - privileged * (OTHER_PORTS - PRIVILEGED_PORTS);

	return bpf_htons(first + (from - first + places) % ports);
}

static __always_inline __be16 substitute_of(__be16 own, __u32 number)
{
	return number ? shifted(own, SUBSTITUTE_SHIFT(number)) : own;
}

static __always_inline __be16 own_of(__be16 substitute, __u32 number)
{
	return number ? shifted(substitute, OTHER_PORTS - SUBSTITUTE_SHIFT(number)) : substitute;
}

/* Of the packet's header alone: `p` has the new port, or is to have it. */
static __always_inline bool write_port(struct __sk_buff *skb, struct packet *p, bool is_source, __be16 old, __be16 new)
{
	bool is_udp = p->protocol == IPPROTO_UDP;
	__u32 check_at = p->l4 + (is_udp ? offsetof(struct udphdr, check) : offsetof(struct tcphdr, check));
	__u64 flags = (is_udp ? BPF_F_MARK_MANGLED_0 : 0) | sizeof(new);

	if (p->fragment == FRAGMENT_LATER) /* has none */
		return true;
	if (bpf_l4_csum_replace(skb, check_at, old, new, flags) ||
	    bpf_skb_store_bytes(skb, p->l4 + (is_source ? 0 : 2), &new, sizeof(new), 0))
		return REFUSE(p, DROP_WRITE_ERROR);
	return true;
}

/* The same in the packet that an ICMP error quotes. */
static __always_inline bool write_quoted_port(struct __sk_buff *skb, struct packet *p, struct quoted *q, bool is_source,
                                              __be16 new)
{
	__be16 *old = is_source ? &q->source_port : &q->destination_port;

	if (bpf_l4_csum_replace(skb, p->l4 + offsetof(struct icmp, check), *old, new, sizeof(new)) ||
	    bpf_skb_store_bytes(skb, q->l4 + (is_source ? 0 : 2), &new, sizeof(new), 0))
		return REFUSE(p, DROP_WRITE_ERROR);
	*old = new;
	return true;
}

/* Is the connection one that this end began with what it calls `called`, from its own port or substitute `number`?
 * Without a jump for each word: the search asks it many times. */
static __always_inline bool is_with(struct connection *c, bool is_low, const struct address *called, __be16 port,
                                    __u32 number)
{
	__u32 differ = (is_low ^ (c->flags & CT_ORIGIN_LOW)) | (c->substitute ^ number) | (c->service_port ^ port);

#pragma unroll
	for (int i = 0; i < 4; i++)
		differ |= c->service_address.word[i] ^ called->word[i];
	return !differ;
}

/* While a connection with the backend itself goes by a substitute, the one in whose place it would else be stays: its
 * packets bear no service's address, by which they would be known. */
static __always_inline void hold_place(struct connection *c, struct packet *p)
{
	__u32 expires = p->now + lifetime(p->protocol, CT_REPLIED);

	if (is_over(c, p) || c->expires < expires)
		c->expires = expires;
}

/* A reply to a substitute: give it the port of who called. */
static __always_inline bool to_own_port(struct __sk_buff *skb, struct packet *p, struct connection *c)
{
	__be16 substitute = p->destination_port;

	p->destination_port = own_of(substitute, c->substitute);
	if (c->service_port == p->source_port && is_same(&c->service_address, &p->source)) {
		struct connection *place;

		key_of(&p->holder, &p->source, p->source_port, &p->destination, p->destination_port, p->protocol);
		place = connection_at(&p->holder);
		if (place && place->flags & CT_TRANSLATED)
			hold_place(place, p);
	}
	return write_port(skb, p, false, substitute, p->destination_port);
}

#endif
