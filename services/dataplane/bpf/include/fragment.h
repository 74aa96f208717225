/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Fragments: the first one has the ports, and says them to the others by way of a map. */
#ifndef PLEXUS_FRAGMENT_H
#define PLEXUS_FRAGMENT_H

#undef THIS_FILE
#define THIS_FILE FILE_FRAGMENT

static __always_inline void fragment_key_of(struct fragment_key *key, struct packet *p)
{
	key->source = p->source;
	key->destination = p->destination;
	key->identification = p->identification;
	key->protocol = p->is_ip6 ? 0 : p->protocol; /* in IPv6 only the first one says it for sure (RFC 8200, 4.5) */
}

/* After parse_network: the ports, also of a fragment that has none of its own. */
static __always_inline bool parse_transport(struct __sk_buff *skb, struct packet *p)
{
	struct fragment_key key = {};
	struct fragment *first;

	if (!parse_l4(skb, p))
		return false;
	if (p->fragment != FRAGMENT_LATER)
		return true;
	fragment_key_of(&key, p);
	first = fragments.lookup(&key);
	if (!first) /* it came before the first, or long after: the sender repeats the datagram */
		return REFUSE(p, DROP_FRAGMENT_NOT_FOUND);
	p->protocol = first->protocol;
	p->source_port = first->source_port;
	p->destination_port = first->destination_port;
	p->icmp_type = first->icmp_type;
	p->icmp_kind = first->icmp_kind;
	return true;
}

static __always_inline bool parse(struct __sk_buff *skb, struct packet *p)
{
	return parse_network(skb, p) && parse_transport(skb, p);
}

/* A first fragment whose source address is the sender's own: the others are judged as it is. Call it before the packet
 * is rewritten, and after its source was checked: what a stranger says of another's datagram must not count. */
static __always_inline void remember(struct packet *p)
{
	struct fragment_key key = {};
	struct fragment first = {};

	if (p->fragment != FRAGMENT_FIRST)
		return;
	p->fragment = FRAGMENT_KEPT;
	fragment_key_of(&key, p);
	first.protocol = p->protocol;
	first.source_port = p->source_port;
	first.destination_port = p->destination_port;
	first.icmp_type = p->icmp_type;
	first.icmp_kind = p->icmp_kind;
	fragments.update(&key, &first); /* without room the others are dropped: "not found" */
}

/* A first fragment whose datagram is not ours: identifications repeat, and what an earlier one with the same said must
 * not take the others of this one elsewhere. */
static __always_inline void forget(struct packet *p)
{
	struct fragment_key key = {};

	if (p->fragment != FRAGMENT_FIRST)
		return;
	fragment_key_of(&key, p);
	fragments.delete(&key);
}

#endif
