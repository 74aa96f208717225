/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* From another node or from outside, to a pod of this node. */
#ifndef PLEXUS_DELIVER_H
#define PLEXUS_DELIVER_H

#undef THIS_FILE
#define THIS_FILE FILE_DELIVER

/* Who sends this, and by what way has it come? false: it is not who it says. */
static __always_inline bool identify(struct packet *p, struct way *came);

/* Packets that go this way (of a connection) come back by this device, and this one has. */
static __always_inline bool is_way_back(struct packet *p, __u8 way, struct address *hop);

/* BY_STACK, which each program defines: the node's stack takes it from here to to_pod, which translates it. */
static __always_inline int hand_over(struct __sk_buff *skb, struct packet *p, struct endpoint *to)
{
	return BY_STACK ? TC_ACT_OK : into_pod(skb, p, to);
}

/* Judge and hand over. Who sends it is asked for the first packet of a connection, after a change, and whenever it does
 * not come from where its connection's other packets go: nobody slips in between. */
static __always_inline int deliver(struct __sk_buff *skb, struct packet *p, struct endpoint *to)
{
	struct connection *c;
	struct way came = {};
	struct flow f;
	__u32 back;

	if (p->icmp_kind == ICMP_IS_ERROR) {
		p->by_stack = BY_STACK;
		return identify(p, &came) ? jump_with_error(skb, p, ERROR_FOR_POD) : TC_ACT_SHOT;
	}
	if (p->icmp_kind == ICMP_IS_LINK)
		return DROP(p, DROP_FORBIDDEN_ICMP6);
	find(&f, p);
	c = f.connection;
	back = (f.from_origin ^ 1) & 1;
	if ((!c || !is_judged(p, c, NULL, to) || !is_way_back(p, c->way[back], &c->hop)) && !identify(p, &came))
		return TC_ACT_SHOT;
	remember(p);
	if (!admit(p, &f, NULL, to, p->source_identity))
		return TC_ACT_SHOT;
	c = f.connection;
	if (!c)
		return TC_ACT_SHOT;
	if (came.to != WAY_UNKNOWN) {
		if (c->way[back] != came.to || !is_none(&came.hop)) /* else the device that leads there may be known */
			c->hop = came.hop;
		c->way[back] = came.to;
	}
	if (!BY_STACK && !f.from_origin && !from_service(skb, p, c))
		return TC_ACT_SHOT;
	return hand_over(skb, p, to);
}

#endif
