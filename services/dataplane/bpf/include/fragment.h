/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Fragments: the first one has the ports, and says them to the others by way of a map. */
#ifndef PLEXUS_FRAGMENT_H
#define PLEXUS_FRAGMENT_H

#undef THIS_FILE
#define THIS_FILE FILE_FRAGMENT

/* parse_ip, with the ports of a fragment that has none of its own. A first fragment is kept before it is judged: the
 * others are judged as it is. */
static __always_inline bool parse(struct __sk_buff *skb, struct packet *p)
{
	struct fragment_key key = {};
	struct fragment first = {};
	struct fragment *known;

	if (!parse_ip(skb, p))
		return false;
	if (p->fragment == FRAGMENT_NONE)
		return true;
	key.source = p->source;
	key.destination = p->destination;
	key.identification = p->identification;
	key.protocol = p->is_ip6 ? 0 : p->protocol; /* in IPv6 only the first one says it for sure (RFC 8200, 4.5) */
	if (p->fragment == FRAGMENT_FIRST) {
		first.protocol = p->protocol;
		first.source_port = p->source_port;
		first.destination_port = p->destination_port;
		first.icmp_type = p->icmp_type;
		first.icmp_kind = p->icmp_kind;
		fragments.update(&key, &first); /* without room the others are dropped: "not found" */
		return true;
	}
	known = fragments.lookup(&key);
	if (!known) /* it came before the first, or long after: the sender repeats the datagram */
		return REFUSE(p, DROP_FRAGMENT_NOT_FOUND);
	p->protocol = known->protocol;
	p->source_port = known->source_port;
	p->destination_port = known->destination_port;
	p->icmp_type = known->icmp_type;
	p->icmp_kind = known->icmp_kind;
	return true;
}

#endif
