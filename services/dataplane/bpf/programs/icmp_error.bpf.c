/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The step for ICMP errors, wherever they are met: an error passes where the packet that it quotes has passed, and is
 * translated as that was, inside too. Who sends it was checked by the program that jumps here. */
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
#include "nat.h"
#include "forward.h"
#include "error.h"

#undef THIS_FILE
#define THIS_FILE FILE_ICMP_ERROR

/* The choice is of an earlier connection with the backend itself, and there is one from the pod's own port. */
static __always_inline bool is_of_earlier(struct packet *p, struct quoted *q, struct choice *choice)
{
	struct connection *c;

	if (choice->port != q->source_port || !is_same(&choice->address, &q->source))
		return false;
	key_of(&p->holder, &q->source, q->source_port, &q->destination, q->destination_port, q->protocol);
	c = connection_at(&p->holder);
	return c && !is_over(c, p) && !(c->flags & CT_TRANSLATED);
}

/* The pod complains about a packet from a service whose backend it does not know: speak of the backend. */
static __always_inline bool about_backend(struct __sk_buff *skb, struct packet *p, struct quoted *q)
{
	struct choice_key key = {};
	struct choice *choice;

	key.client = q->destination;
	key.service = q->source;
	key.client_port = q->destination_port;
	key.service_port = q->source_port;
	key.protocol = q->protocol;
	choice = choices.lookup(&key);
	if (!choice || !is_same(&q->source, &p->destination))
		return true;
	if (choice->substitute && is_of_earlier(p, q, choice))
		return true;
	if (choice->substitute &&
	    !write_quoted_port(skb, p, q, false, substitute_of(q->destination_port, choice->substitute)))
		return false;
	return rewrite_quoted(skb, p, q, true, &choice->address, choice->port) &&
	       rewrite_destination(skb, p, &choice->address, p->destination_port);
}

/* A pod's ICMP error about what it got on a connection that it began: who sent that knows only the node. */
static __always_inline bool masquerade_error(struct __sk_buff *skb, struct packet *p, struct quoted *q,
                                             struct connection *c)
{
	if (!(c->flags & (CT_MASQUERADED | CT_RELAYED)) || !c->nat_port)
		return true;
	find_leaves_as(p);
	return rewrite_quoted(skb, p, q, false, &p->leaves_as, c->nat_port) &&
	       rewrite_source(skb, p, &p->leaves_as, p->source_port);
}

/* About a masqueraded packet: the pod is told, in the words that it used itself. false: it is the node's own. */
static __always_inline bool is_for_masqueraded(struct packet *p, struct quoted *q, struct nat_entry *pod)
{
	struct nat_entry *entry;
	struct nat_key key;

	if (!is_same(&q->source, &p->destination))
		return false;
	entry = mapping_of(&key, &q->destination, q->destination_port, &q->source, q->source_port, q->protocol);
	if (!entry || is_abandoned(&key, entry, p))
		return false;
	*pod = *entry;
	return true;
}

static __always_inline bool unmasquerade_error(struct __sk_buff *skb, struct packet *p, struct quoted *q,
                                               struct nat_entry *pod)
{
	if (!rewrite_quoted(skb, p, q, true, &pod->pod_address, pod->pod_port) ||
	    !rewrite_destination(skb, p, &pod->pod_address, p->destination_port))
		return false;
	if (is_icmp(q->protocol)) /* both ends go by the identifier, which is another now */
		icmp_ports(icmp_kind(q->protocol, q->icmp_type), q->icmp_type, pod->pod_port, &q->source_port,
		           &q->destination_port);
	return p->is_known || REFUSE(p, DROP_INVALID_SOURCE);
}

/* A pod is an end of what it complains about, never a router. */
static __always_inline int pod_complains(struct __sk_buff *skb, struct packet *p, struct quoted *q,
                                         struct connection *c, bool to_origin)
{
	struct way way = { .to = WAY_LOCAL };
	struct endpoint *to = endpoint_at(&p->destination);

	if (!to && !find_way(skb, p, &way))
		return TC_ACT_SHOT;
	p->device = way.hop.word[3];
	if (!LEGACY_ROUTING && way.to == WAY_OUT && !to_origin && !masquerade_error(skb, p, q, c))
		return TC_ACT_SHOT;
	return send(skb, p, &way, p->source_identity, to);
}

/* About a connection that is relayed: to who called from outside, or to the backend elsewhere, as this node. */
static __always_inline int relay_error(struct __sk_buff *skb, struct packet *p, struct quoted *q, struct connection *c,
                                       bool to_origin)
{
	struct address back;

	if (!to_origin) {
		p->device = relays_by(c);
		return masquerade_error(skb, p, q, c) ? relay(skb, p, c->way[1], &c->hop) : TC_ACT_SHOT;
	}
	if (!c->back)
		c->back = device_of_route(skb, p);
	if (!c->back)
		return DROP(p, DROP_FIB);
	set_device(&back, c->back);
	return past_stack(skb, p, &back);
}

static __always_inline int hand_over(struct __sk_buff *skb, struct packet *p)
{
	struct endpoint *to;

	if (p->by_stack)
		return TC_ACT_OK;
	to = endpoint_at(&p->destination);
	return to ? into_pod(skb, p, to) : DROP(p, DROP_UNROUTABLE);
}

/* Is this the last program that sees it on its way to who began? The backend becomes the service there. */
static __always_inline bool is_last(struct packet *p, struct connection *c)
{
	if (p->error == ERROR_OF_POD)
		return !LEGACY_ROUTING;
	return !p->by_stack || c->flags & CT_RELAYED;
}

static __always_inline int pass(struct __sk_buff *skb, struct packet *p)
{
	struct nat_entry pod;
	struct connection *c;
	struct quoted q = {};
	__be16 called_port;
	bool to_origin;

	if (!parse_quoted(skb, p, &q)) /* of what it gets or says itself, the node's own stack is the judge */
		return p->error == ERROR_FOR_NODE || p->error == ERROR_OF_HOST ? TC_ACT_UNSPEC : TC_ACT_SHOT;
	if (p->error == ERROR_FOR_NODE && is_for_masqueraded(p, &q, &pod)) {
		if (!unmasquerade_error(skb, p, &q, &pod))
			return TC_ACT_SHOT;
	} else if (p->error == ERROR_FOR_NODE) { /* the node's own, or about what a Service has answered */
		called_port = q.source_port;
		p->leaves_as = q.source;
		if (!serves(SERVES_OUTSIDE))
			return TC_ACT_UNSPEC;
		if (!about_backend(skb, p, &q))
			return TC_ACT_SHOT;
		if (q.source_port == called_port && is_same(&q.source, &p->leaves_as))
			return TC_ACT_UNSPEC;
		if (!p->is_known)
			return DROP(p, DROP_INVALID_SOURCE);
	}
	if (p->error == ERROR_OF_POD) {
		if (!is_same(&q.destination, &p->source))
			return DROP(p, DROP_INVALID);
		if (!about_backend(skb, p, &q))
			return TC_ACT_SHOT;
	}
	c = admit_error(p, &q, &to_origin);
	if (p->error == ERROR_OF_HOST && (!c || !to_origin)) /* of no connection to a Service */
		return TC_ACT_UNSPEC;
	if (!c || (to_origin && is_last(p, c) && !error_from_service(skb, p, &q, c)))
		return TC_ACT_SHOT;
	if (p->error == ERROR_OF_HOST)
		return TC_ACT_UNSPEC;
	if (p->error == ERROR_FOR_NODE && c->flags & CT_RELAYED)
		return relay_error(skb, p, &q, c, to_origin);
	if (p->error == ERROR_FOR_NODE && !to_origin && c->way[1] == WAY_HOST)
		return TC_ACT_OK;
	if (p->error == ERROR_OF_POD)
		return pod_complains(skb, p, &q, c, to_origin);
	if (p->error == ERROR_OF_STACK)
		return TC_ACT_OK;
	if (LEGACY_ROUTING && p->error == ERROR_ROUTED)
		return !is_masqueraded(c, !to_origin) || masquerade_error(skb, p, &q, c) ? TC_ACT_UNSPEC : TC_ACT_SHOT;
	return hand_over(skb, p);
}

int icmp_error(struct __sk_buff *skb)
{
	struct packet *p = go_on_with();
	int action;

	if (!p)
		return TC_ACT_SHOT;
	action = pass(skb, p);
	/* Of what the stack has routed it tells in its own name, too: it knows the backend. */
	if (LEGACY_ROUTING && p->error == ERROR_OF_STACK && action == TC_ACT_SHOT &&
	    identity_of(&p->source, NULL) == IDENTITY_HOST)
		action = TC_ACT_OK;
	return action == TC_ACT_UNSPEC ? action : finish(skb, p, action);
}
