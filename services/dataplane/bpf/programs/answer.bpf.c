/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The step for what a backend elsewhere answers to who called from outside (docs/adr/0031): it came to this node, which had
 * sent as itself (serve.bpf.c), and goes on to the client, in the name of what that has called. Who jumps here has made the
 * client its destination. */
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
#include "forward.h"
#include "sender.h"

#undef THIS_FILE
#define THIS_FILE FILE_ANSWER

static __always_inline int give_back(struct __sk_buff *skb, struct packet *p)
{
	struct way came = {};
	struct flow f = {};
	struct connection *c;
	struct address back;

	find(&f, p);
	c = f.connection;
	if (!c || f.from_origin || !(c->flags & CT_RELAYED)) /* evicted in this very moment, or another's */
		return DROP(p, DROP_UNKNOWN_CT);
	/* By the tunnel: it was asked already. */
	if (!p->vouched && (!is_judged(p, c, NULL, NULL) || !is_way_back(p, c->way[1], &c->hop)) && !identify(p, &came))
		return TC_ACT_SHOT;
	if (!is_judged(p, c, NULL, NULL))
		c->back = 0;
	if (!admit(p, &f, NULL, NULL, p->source_identity))
		return TC_ACT_SHOT;
	c = f.connection;
	if (!c || !from_service(skb, p, c))
		return TC_ACT_SHOT;
	if (!c->back)
		c->back = device_of_route(skb, p);
	if (!c->back)
		return DROP(p, DROP_FIB);
	set_device(&back, c->back);
	return past_stack(skb, p, &back);
}

int answer(struct __sk_buff *skb)
{
	struct packet *p = go_on_with();

	return p ? finish(skb, p, give_back(skb, p)) : TC_ACT_SHOT;
}
