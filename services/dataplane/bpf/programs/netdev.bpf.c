/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The node's devices that lead to other nodes and to the outside. from_netdev (tc ingress): packets for pods of this node, and replies to masqueraded
 * connections. to_netdev (tc egress): nothing leaves for an address of the Services' range; with LEGACY_ROUTING it
 * masquerades what the stack has routed. */
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
#define BY_STACK LEGACY_ROUTING
#include "deliver.h"

#undef THIS_FILE
#define THIS_FILE FILE_NETDEV

#define VLAN_ID 0xfff
#define TO_A_POD 1000 /* no verdict: it is translated, and goes the way of what bears a pod's address */

/* Nobody out there is this node or has an address of its blocks; with a tunnel, pods come through it, not here; and
 * without, by a device that leads to some: who is on another uplink's network is none of them. */
static __always_inline bool identify(struct packet *p, struct way *came)
{
	struct ipcache_entry *sender = who_is(&p->source);
	bool is_pod = sender && !is_none(&sender->node);

	p->source_identity = sender ? sender->identity : world(&p->source);
	if (p->source_identity == IDENTITY_HOST || endpoint_at(&p->source))
		return REFUSE(p, DROP_INVALID_SOURCE);
	if (is_pod && (TUNNEL_INDEX || is_node(&sender->node) || !has_pods(p->device)))
		return REFUSE(p, DROP_INVALID_SOURCE);
	came->to = is_pod ? WAY_POD : WAY_OUT;
	if (is_pod && !(sender->flags & IPCACHE_ROUTED))
		came->hop = sender->node;
	else if (is_pod && LEGACY_ROUTING) /* the stack sends: nobody else asks for the device */
		set_device(&came->hop, p->device);
	return true;
}

static __always_inline bool is_way_back(struct packet *p, __u8 way, struct address *hop)
{
	if (way != WAY_POD || TUNNEL_INDEX)
		return way == WAY_OUT;
	return p->device == (is_device(hop) ? hop->word[3] : DEVICE_INDEX);
}

/* For the node itself: if it answers a masqueraded connection, it goes on to the pod, which is its destination then. */
static __always_inline int node_receives(struct __sk_buff *skb, struct packet *p)
{
	struct way came = {};

	/* What does not parse is the node's own affair: its stack takes it, or not. */
	if (!(MASQUERADE4 || MASQUERADE6))
		return TC_ACT_UNSPEC;
	if (!parse_transport(skb, p)) {
		forget(p);
		return TC_ACT_UNSPEC;
	}
	if (p->icmp_kind == ICMP_IS_ERROR) {
		p->by_stack = BY_STACK;
		p->is_known = identify(p, &came);
		return jump_with_error(skb, p, ERROR_FOR_NODE);
	}
	if (!unmasquerade(skb, p))
		return TC_ACT_SHOT;
	if (p->for_pod)
		return TO_A_POD;
	forget(p);
	return TC_ACT_UNSPEC;
}

/* Routed on by this node, it would enter the tunnel and look as if this node vouched for its sender. */
static __always_inline bool is_for_tunnel(struct ipcache_entry *to)
{
	return TUNNEL_INDEX && to && !is_none(&to->node) && !is_node(&to->node);
}

/* One of its other addresses, which what leaves by another device may bear. Its answers come by any device. */
static __always_inline bool is_also_node(struct ipcache_entry *to)
{
	return (MASQUERADE4 || MASQUERADE6) && to && to->identity == IDENTITY_HOST;
}

int from_netdev(struct __sk_buff *skb)
{
	struct ipcache_entry *entry = NULL;
	struct packet *p;
	struct endpoint *to;
	bool is_own;
	int action;

	/* A tag is of another network on this wire, and another device's affair. */
	if (skb->vlan_present && skb->vlan_tci & VLAN_ID)
		return TC_ACT_UNSPEC;
	p = take(INGRESS);
	if (!p)
		return TC_ACT_SHOT;
	p->device = skb->ifindex;
	/* VLAN 0 is a priority and no network: the stack takes the frame as if it had none (802.1Q). */
	if (skb->vlan_present && (bpf_skb_vlan_pop(skb) || skb->vlan_present)) {
		read_clock(p);
		return finish(skb, p, DROP(p, DROP_VLAN));
	}
	if (!is_ip(skb))
		return TC_ACT_UNSPEC;
	if (!parse_network(skb, p)) {
		if (!endpoint_at(&p->destination)) /* the node's own affair */
			return TC_ACT_UNSPEC;
		read_clock(p);
		return finish(skb, p, TC_ACT_SHOT);
	}
	is_own = is_node(&p->destination);
	to = is_own ? NULL : endpoint_at(&p->destination);
	if (!is_own && !to && (TUNNEL_INDEX || MASQUERADE4 || MASQUERADE6)) {
		entry = who_is(&p->destination);
		is_own = is_also_node(entry);
	}
	if (is_own) {
		read_clock(p);
		action = node_receives(skb, p);
		if (action == TC_ACT_UNSPEC)
			return action;
		if (action != TO_A_POD)
			return finish(skb, p, action);
		to = endpoint_at(&p->destination);
		action = to ? TC_ACT_OK : DROP(p, DROP_UNROUTABLE);
	} else {
		if (!to && !is_for_tunnel(entry)) /* to be routed by the node */
			return TC_ACT_UNSPEC;
		read_clock(p);
		if (!to)
			action = DROP(p, DROP_ENCAP_PROHIBITED);
		else
			action = parse_transport(skb, p) ? TC_ACT_OK : TC_ACT_SHOT;
	}
	return finish(skb, p, to && action != TC_ACT_SHOT ? deliver(skb, p, to) : action);
}

/* What from_pod has judged and the stack routed. The stack and its netfilter have seen the pod's address, as they do
 * in replies. */
static __always_inline int pod_leaves(struct __sk_buff *skb, struct packet *p)
{
	struct connection *c;
	struct flow f;
	__be16 port;

	if (!parse_transport(skb, p))
		return TC_ACT_SHOT;
	remember(p);
	if (p->icmp_kind == ICMP_IS_ERROR)
		return jump_with_error(skb, p, ERROR_ROUTED);
	find(&f, p);
	c = f.connection;
	if (!c) /* evicted since from_pod has seen it: nobody knows whether the pod's address may be seen */
		return DROP(p, DROP_UNKNOWN_CT);
	if (!is_masqueraded(c, f.from_origin))
		return TC_ACT_UNSPEC;
	port = c->nat_port; /* once: another CPU may take it away */
	if (!port)
		return jump(skb, p, STEP_MASQUERADE_PORT);
	return masquerade(skb, p, c, port) ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

/* No hook of a socket has led it to a backend, and nobody out there has the address: a datagram to a port that the Service
 * has not, a ping, what a program outside of the cgroup sends. */
static __always_inline int for_no_service(struct __sk_buff *skb, struct packet *p)
{
	if (!parse(skb, p))
		return TC_ACT_SHOT;
	remember(p);
	p->source_identity = identity_of(&p->source, NULL);
	REFUSE(p, DROP_NO_BACKEND);
	/* What the node only forwards has a source that anybody may have written: that is not answered. */
	return REJECT && !skb->ingress_ifindex ? jump(skb, p, STEP_REJECT) : TC_ACT_SHOT;
}

int to_netdev(struct __sk_buff *skb)
{
	struct address to;
	struct packet *p;
	int action;

	if (!is_ip(skb) || skb->vlan_present)
		return TC_ACT_UNSPEC;
	if (KNOWS_SERVICES && read_destination(skb, &to) && is_of_services(&to)) {
		p = take(EGRESS);
		if (!p)
			return TC_ACT_SHOT;
		read_clock(p);
		return finish(skb, p, for_no_service(skb, p));
	}
	if (!LEGACY_ROUTING || !(MASQUERADE4 || MASQUERADE6))
		return TC_ACT_UNSPEC;
	p = take(EGRESS);
	if (!p)
		return TC_ACT_SHOT;
	if (!parse_network(skb, p) || is_node(&p->source) || !endpoint_at(&p->source))
		return TC_ACT_UNSPEC;
	read_clock(p);
	p->device = skb->ifindex;
	action = pod_leaves(skb, p);
	return action == TC_ACT_UNSPEC ? action : finish(skb, p, action); /* from_pod has counted what passes */
}
