/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* From another node or from outside, to a pod of this node. */
#ifndef PLEXUS_DELIVER_H
#define PLEXUS_DELIVER_H

/* Who sends this? Asked for the first packet of a connection and after a change; false: it is not who it says. */
static __always_inline bool identify(struct packet *p);

/* Judge and hand over. */
static __always_inline int deliver(struct __sk_buff *skb, struct packet *p, struct endpoint *to)
{
	struct flow f = {};
	struct connection *c;

	if (p->is_error) {
		if (!identify(p) || !admit_error(p))
			return TC_ACT_SHOT;
		return into_pod(skb, p, to);
	}
	find(&f, p);
	if ((!f.connection || f.connection->epoch != p->epoch) && !identify(p))
		return TC_ACT_SHOT;
	if (!admit(p, &f, NULL, to, p->source_identity, 0, 0))
		return TC_ACT_SHOT;
	c = f.connection;
	if (c && c->flags & CT_TRANSLATED && !f.from_origin &&
	    !rewrite_source(skb, p, c->service_address, c->service_port))
		return TC_ACT_SHOT;
	return into_pod(skb, p, to);
}

#endif
