/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* A pod's veth, host side. from_pod (tc ingress): what the pod sends. to_pod (tc egress): what the host's stack sends
 * to it; what other pods and other nodes send goes past this hook, straight into the pod. With LEGACY_ROUTING only what
 * comes through a tunnel does, and replies of services are translated here. */
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
#include "service.h"
#include "nat.h"
#include "forward.h"
#include "checksum.h"
#include "link.h"
#include "neighbour.h"

#undef THIS_FILE
#define THIS_FILE FILE_POD

/* It is known by whom the other end was heard, and not yet what leads there. */
static __always_inline bool needs_device(struct way *way)
{
	if (way->hop.word[3] || LEGACY_ROUTING) /* the former for most: an address, or a device */
		return false;
	return (way->to == WAY_OUT || (way->to == WAY_POD && !TUNNEL_INDEX)) && is_none(&way->hop);
}

/* The way of this packet's direction, found once a connection and again after a change. */
static __always_inline bool choose_way(struct __sk_buff *skb, struct packet *p, struct flow *f, struct endpoint *to,
                                       struct way *way)
{
	struct connection *c = f->connection;
	__u32 side = f->from_origin & 1;

	way->to = c->way[side];
	way->hop = c->hop;
	/* Or the pod that it led to is gone. */
	if (way->to > WAY_LOCAL ? !needs_device(way) : way->to == WAY_LOCAL && to)
		return true;
	if (to)
		way->to = WAY_LOCAL;
	else if (!find_way(skb, p, way))
		return false;
	if (way->masquerade && f->from_origin) {
		/* It would bear this node's address, and another node believes what a node sends it in a tunnel. */
		if (TUNNEL_INDEX && p->protocol == IPPROTO_UDP && p->destination_port == TUNNEL_PORT)
			return REFUSE(p, DROP_ENCAP_PROHIBITED);
		c->flags |= CT_MASQUERADED;
	}
	if (way->to == WAY_POD || way->to == WAY_OUT)
		c->hop = way->hop;
	c->way[side] = way->to;
	return true;
}

/* A connection that may have begun before its service was known: nobody has answered it, or nobody need. */
static __always_inline bool is_unsettled(struct flow *f, struct packet *p)
{
	struct connection *c = f->connection;

	return f->from_origin && !is_of_now(p, c) && is_before_epoch(c->epoch, p->state.services) &&
	       (p->protocol == IPPROTO_UDP || !(c->flags & CT_REPLIED));
}

/* Has the pod at the packet's destination to be looked up, if one of this node is there? */
static __always_inline bool needs_receiver(struct packet *p, struct flow *f, struct endpoint *from)
{
	struct connection *c = f->connection;

	if (!c || c->way[f->from_origin & 1] <= WAY_LOCAL)
		return true;
	return !is_of_now(p, c) && (c->flags & CT_BOTH_HERE || !is_judged(p, c, from, NULL));
}

static __always_inline int pod_sends(struct __sk_buff *skb, struct packet *p)
{
	struct endpoint *from, *to = NULL;
	struct connection *c;
	struct translation *t = no_translation(p);
	struct flow f;
	struct way way = {};
	bool to_itself;

	if (skb->vlan_present) /* the tag would leave with the packet */
		return DROP(p, DROP_VLAN);
	if (IPV4_ENABLED && skb->protocol == bpf_htons(ETH_P_ARP))
		return answer_arp(skb, p);
	if (!is_ip(skb))
		return DROP(p, DROP_UNSUPPORTED_L3);
	if (!parse(skb, p))
		return TC_ACT_SHOT;
	if (p->icmp_kind == ICMP_IS_LINK)
		return answer_neighbour(skb, p);
	from = endpoint_at(&p->source);
	if (!from || from->interface != skb->ifindex)
		return DROP(p, DROP_INVALID_SOURCE);
	p->source_identity = from->identity;
	p->vouched = 1;
	remember(p);
	if (p->icmp_kind == ICMP_IS_ERROR)
		return jump_with_error(skb, p, ERROR_OF_POD);

	find(&f, p);
	if ((!f.connection || is_unsettled(&f, p) || (f.from_origin && f.connection->flags & CT_TRANSLATED)) &&
	    !balance(skb, p, &f, t))
		return TC_ACT_SHOT;
	to_itself = t->to_itself || answers_itself(p, &f);
	if (f.connection && is_unsettled(&f, p)) /* it has been looked for a service: once, so that it is judged now */
		p->state.all = p->state.services;
	if (!to_itself && needs_receiver(p, &f, from))
		to = endpoint_at(&p->destination);
	if (!f.connection && is_unroutable(&p->destination)) /* before an entry is made for it */
		return DROP(p, DROP_UNKNOWN_L3_TARGET);
	if (!to_itself && is_of_services(&p->destination)) /* or the world would get it: no service has this port */
		return DROP(p, DROP_NO_BACKEND);
	/* What a pod sends to itself never meets its policy, as where the socket hooks see it. */
	if (!admit(p, &f, to_itself ? NULL : from, to, from->identity))
		return TC_ACT_SHOT;
	c = f.connection;
	if (!c) /* admitted, so there is one: the verifier wants to hear it */
		return TC_ACT_SHOT;
	if (f.from_origin) {
		if (!translated(p, c, t))
			return TC_ACT_SHOT;
	} else {
		if (to_itself && !rewrite_destination(skb, p, &p->source, p->destination_port))
			return TC_ACT_SHOT;
		if ((!LEGACY_ROUTING || to_itself) && !from_service(skb, p, c))
			return TC_ACT_SHOT;
	}
	if (to_itself)
		return into_pod(skb, p, from);
	if (!choose_way(skb, p, &f, to, &way))
		return TC_ACT_SHOT;
	if (!LEGACY_ROUTING && (MASQUERADE4 || MASQUERADE6) && c->flags & CT_MASQUERADED && f.from_origin &&
	    way.to == WAY_OUT) {
		__be16 port = c->nat_port; /* once: another CPU may take it away */

		p->device = way.hop.word[3];
		if (!port)
			return jump(skb, p, STEP_MASQUERADE_PORT);
		if (!masquerade(skb, p, c, port, 0))
			return TC_ACT_SHOT;
	}
	return send(skb, p, &way, from->identity, to);
}

/* The pod of this node that the stack has it from: its policy may have changed since its own device let it through. */
static __always_inline struct endpoint *sender_here(struct packet *p, struct flow *f, struct endpoint *to)
{
	struct connection *c = f->connection;

	return c && !(c->flags & CT_BOTH_HERE) && is_judged(p, c, NULL, to) ? NULL : endpoint_at(&p->source);
}

/* May the stack have a packet with this source address? `device` is the one by which it came to the node; 0: the
 * node's own. A pod of this node comes by its own device, where from_pod has checked its source: with LEGACY_ROUTING,
 * or because rules of others send to a pod what it sent to the node. Pods of other nodes come so only with
 * LEGACY_ROUTING, by a device that has pods, and not with a tunnel; nobody is asked at any other. `is_answer`: rules of
 * others may translate what a pod sends to the node, and back. `to`: what a pod sends to itself by way of the node may
 * bear the node's address. */
static __always_inline bool stack_may_speak_for(struct address *source, __u32 device, bool is_answer, __u32 to)
{
	struct endpoint *from = endpoint_at(source);
	struct ipcache_entry *sender;

	if (from)
		return from->interface == device;
	sender = who_is(source);
	if (sender && sender->identity == IDENTITY_HOST)
		return !device || is_answer || device == to;
	if (!sender || is_none(&sender->node))
		return true;
	return !TUNNEL_INDEX && (!LEGACY_ROUTING || has_pods(device));
}

/* The node's own stack tells the pod of what it sent. What it has routed names backends, which the pod does not know. */
static __always_inline int stack_complains(struct __sk_buff *skb, struct packet *p, __u32 device)
{
	if (!stack_may_speak_for(&p->source, device, false, 0))
		return DROP(p, DROP_INVALID_SOURCE);
	if (!LEGACY_ROUTING && identity_of(&p->source, NULL) == IDENTITY_HOST)
		return TC_ACT_OK;
	return jump_with_error(skb, p, ERROR_OF_STACK);
}

static __always_inline int stack_sends(struct __sk_buff *skb, struct packet *p)
{
	__u32 device = skb->ingress_ifindex; /* here: later the verifier takes the context for changed */
	struct flow f;
	struct endpoint *to, *from;
	struct connection *c;
	bool is_answer;
	__u32 back;

	if (IPV4_ENABLED && skb->protocol == bpf_htons(ETH_P_ARP)) /* the host looks for the pod */
		return TC_ACT_OK;
	if (!is_ip(skb))
		return DROP(p, DROP_UNSUPPORTED_L3);
	if (!parse(skb, p))
		return TC_ACT_SHOT;
	if (p->icmp_kind == ICMP_IS_LINK) /* the host looks for the pod; nobody else's comes this far (hop limit) */
		return p->icmp_type == ICMP6_NEIGHBOUR_SOLICITATION || p->icmp_type == ICMP6_NEIGHBOUR_ADVERTISEMENT
			       ? TC_ACT_OK
			       : DROP(p, DROP_FORBIDDEN_ICMP6);
	to = endpoint_at(&p->destination);
	if (!to || to->interface != skb->ifindex)
		return DROP(p, DROP_UNROUTABLE);
	if (p->icmp_kind == ICMP_IS_ERROR) /* the node's own stack tells the pod of what it sent */
		return stack_complains(skb, p, device);
	find(&f, p);
	c = f.connection;
	back = (f.from_origin ^ 1) & 1;
	is_answer = c && !f.from_origin;
	from = sender_here(p, &f, to);
	if ((!c || !is_judged(p, c, from, to) || c->way[back] != WAY_HOST || (device && !is_answer)) &&
	    !stack_may_speak_for(&p->source, device, is_answer, to->interface))
		return DROP(p, DROP_INVALID_SOURCE);
	p->vouched = !device;
	remember(p);
	if (!admit(p, &f, from, to, 0))
		return TC_ACT_SHOT;
	c = f.connection;
	if (!c)
		return TC_ACT_SHOT;
	if (!LEGACY_ROUTING && c->way[back] == WAY_UNKNOWN) /* answers take the same way */
		c->way[back] = WAY_HOST;
	if (!LEGACY_ROUTING && f.from_origin && !(c->flags & CT_BY_STACK)) /* also after a change */
		c->flags |= CT_BY_STACK;
	/* A backend that is the node itself answers for its service; with LEGACY_ROUTING every backend does, here. */
	return f.from_origin || from_service(skb, p, c) ? TC_ACT_OK : TC_ACT_SHOT;
}

int from_pod(struct __sk_buff *skb)
{
	struct packet *p = take(EGRESS);
	int action;

	if (!p)
		return TC_ACT_SHOT;
	read_clock(p);
	action = pod_sends(skb, p);
	if (action == TC_ACT_SHOT && p->comes_back)
		action = jump(skb, p, STEP_COME_BACK);
	if (REJECT && action == TC_ACT_SHOT && p->reason == DROP_NO_BACKEND)
		action = jump(skb, p, STEP_REJECT);
	return finish(skb, p, action);
}

int to_pod(struct __sk_buff *skb)
{
	struct packet *p = take(INGRESS);

	if (!p)
		return TC_ACT_SHOT;
	read_clock(p);
	return finish(skb, p, stack_sends(skb, p));
}
