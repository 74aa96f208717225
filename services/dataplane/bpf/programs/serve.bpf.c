/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The step for who calls a Service from outside, where no socket was asked (docs/adr/0031): it is led to a backend. To a pod
 * of this node with its own address, by which that pod's policy judges it; to one elsewhere as this node, so that what it
 * answers comes back here. from_netdev has found the Service. */
#include "plexus.h"
#include "devices.h"
#include "parse.h"
#include "fragment.h"
#include "steps.h"
#include "events.h"
#include "policy.h"
#include "flow.h"
#include "substitute.h"
#include "rewrite.h"
#include "frontend.h"
#include "ranges.h"
#include "service.h"
#include "nat.h"
#include "forward.h"
#include "sender.h"

#undef THIS_FILE
#define THIS_FILE FILE_SERVE

/* Which backends serve who calls from outside: the first ones. */
static __always_inline struct service *seen_from_outside(struct packet *p)
{
	struct service *service = &p->frontend;

	if (service->outside < service->backends) {
		service->backends = service->outside;
		service->flags |= SERVICE_LOCAL;
	}
	return service;
}

/* To a pod here. As in deliver.h, but for who sends it, which was asked before. */
static __always_inline int into(struct __sk_buff *skb, struct packet *p, struct connection *c, struct endpoint *to,
                                struct way *came)
{
	if (came->to != WAY_UNKNOWN) {
		if (c->way[0] != came->to || !is_none(&came->hop)) /* else the device that leads there may be known */
			c->hop = came->hop;
		c->way[0] = came->to;
	}
	return LEGACY_ROUTING ? TC_ACT_OK : into_pod(skb, p, to);
}

/* The way to a backend elsewhere, once a connection and again after a change. */
static __always_inline bool find_backend(struct __sk_buff *skb, struct packet *p, struct connection *c)
{
	struct way way = {};
	__u32 device;

	if (!find_way(skb, p, &way))
		return false;
	if (way.to == WAY_HOST &&
	    identity_of(&p->destination, NULL) == IDENTITY_HOST) { /* to_netdev sees its answers */
		c->way[1] = WAY_HOST;
		return true;
	}
	/* By another device than those that lead out, or with LEGACY_ROUTING: what is relayed goes past the stack. */
	if (way.to == WAY_HOST || (!TUNNEL_INDEX && is_none(&way.hop))) {
		device = device_of_route(skb, p);
		if (!device)
			return REFUSE(p, DROP_FIB);
		set_device(&way.hop, device);
		if (way.to == WAY_HOST)
			way.to = WAY_OUT;
	}
	c->hop = way.hop;
	c->way[1] = way.to;
	c->flags |= CT_RELAYED;
	return true;
}

/* To a backend elsewhere, as this node; or to this host itself. */
static __always_inline int to_elsewhere(struct __sk_buff *skb, struct packet *p, struct connection *c)
{
	__be16 port;

	if ((c->way[1] == WAY_UNKNOWN || c->way[1] == WAY_LOCAL) && !find_backend(skb, p, c))
		return TC_ACT_SHOT;
	c->way[0] = WAY_OUT;
	if (c->way[1] == WAY_HOST)
		return TC_ACT_OK;
	p->device = relays_by(c);
	port = c->nat_port; /* once: another CPU may take it away */
	if (!port)
		return jump(skb, p, STEP_MASQUERADE_PORT);
	if (!masquerade(skb, p, c, port, NAT_RELAYED))
		return TC_ACT_SHOT;
	return relay(skb, p, c->way[1], &c->hop);
}

static __always_inline int lead_in(struct __sk_buff *skb, struct packet *p)
{
	struct translation *t = no_translation(p);
	struct way came = {};
	struct flow f = {};
	struct connection *c;
	struct endpoint *to;

	if (!may_call(&p->frontend, &p->source))
		return DROP(p, DROP_SOURCE_RANGE);
	if (p->fragment == FRAGMENT_FIRST) { /* its others bear what it bears now */
		if (!identify(p, &came))
			return TC_ACT_SHOT;
		remember(p);
	}
	if (!lead(skb, p, &f, t, seen_from_outside(p)))
		return TC_ACT_SHOT;
	to = endpoint_at(&p->destination);
	c = f.connection;
	if ((!c || !is_judged(p, c, NULL, to) || !is_way_back(p, c->way[0], &c->hop)) && !identify(p, &came))
		return TC_ACT_SHOT;
	if (!admit(p, &f, NULL, to, p->source_identity))
		return TC_ACT_SHOT;
	c = f.connection;
	if (!c || !translated(p, c, t))
		return TC_ACT_SHOT;
	return to ? into(skb, p, c, to, &came) : to_elsewhere(skb, p, c);
}

int serve(struct __sk_buff *skb)
{
	struct packet *p = go_on_with();
	int action;

	if (!p)
		return TC_ACT_SHOT;
	action = lead_in(skb, p);
	if (action == TC_ACT_SHOT && p->comes_back)
		action = jump(skb, p, STEP_COME_BACK);
	/* Where backends of this node alone serve, who balances outside was to ask first whether it has any (its health
	 * check): others have. */
	if (REJECT && action == TC_ACT_SHOT && p->reason == DROP_NO_BACKEND && !(p->frontend.flags & SERVICE_LOCAL))
		action = jump(skb, p, STEP_REJECT);
	return finish(skb, p, action);
}
