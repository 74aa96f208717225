/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The node's devices that lead to other nodes and to the outside. from_netdev (tc ingress): packets for pods of this node,
 * replies to masqueraded connections, and calls of Services from outside. to_netdev (tc egress): nothing leaves for an
 * address of the Services' range; with LEGACY_ROUTING it masquerades what the stack has routed, and lets replies to the
 * outside bear the Service. */
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
#include "nat.h"
#include "forward.h"
#include "sender.h"
#define BY_STACK LEGACY_ROUTING
#include "deliver.h"

#undef THIS_FILE
#define THIS_FILE FILE_NETDEV

#define VLAN_ID 0xfff
#define TO_A_POD 1000 /* no verdict: it is translated, and goes the way of what bears a pod's address */

/* For the node itself, or to be routed on by it: if it answers a masqueraded connection, it goes on to the pod, which is its
 * destination then; if it calls a Service, which are looked for where `is_serving`, to a backend. */
static __always_inline int node_receives(struct __sk_buff *skb, struct packet *p, bool is_own, bool is_serving)
{
	struct service_key called = {};
	struct way came = {};

	/* What does not parse is the node's own affair: its stack takes it, or not. */
	if (!(MASQUERADE4 || MASQUERADE6 || is_serving))
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
	if (is_own && !unmasquerade(skb, p, false))
		return TC_ACT_SHOT;
	if (p->for_client)
		return jump(skb, p, STEP_ANSWER);
	if (p->for_pod)
		return TO_A_POD;
	if (is_serving && !is_icmp(p->protocol)) {
		called.address = p->destination;
		called.port = p->destination_port;
		called.protocol = p->protocol;
		if (is_exposed(&called, is_own, &p->frontend))
			return jump(skb, p, STEP_SERVE);
	}
	forget(p);
	return TC_ACT_UNSPEC;
}

/* Routed on by this node, it would enter the tunnel and look as if this node vouched for its sender. */
static __always_inline bool is_for_tunnel(struct ipcache_entry *to)
{
	return TUNNEL_INDEX && to && !is_none(&to->node) && !is_node(&to->node);
}

/* One of its other addresses, which what leaves by another device may bear. Its answers come by any device. */
static __always_inline bool is_also_node(struct ipcache_entry *to, bool is_serving)
{
	return (MASQUERADE4 || MASQUERADE6 || is_serving) && to && to->identity == IDENTITY_HOST;
}

/* Who has an address? It may be one of a Service that this node announces. Without the step it is as if it were none:
 * the node's own addresses are asked for the same way. */
static __always_inline int asked_for_address(struct __sk_buff *skb)
{
	steps.call(skb, STEP_ANSWER_LINK);
	return TC_ACT_UNSPEC;
}

static __always_inline bool is_solicitation(struct __sk_buff *skb, struct packet *p)
{
	__u8 type;

	if (!ANNOUNCES || !IPV6_ENABLED || !p->is_ip6 || p->protocol != IPPROTO_ICMP6)
		return false;
	return !bpf_skb_load_bytes(skb, p->l4, &type, sizeof(type)) && type == ICMP6_NEIGHBOUR_SOLICITATION;
}

int from_netdev(struct __sk_buff *skb)
{
	struct ipcache_entry *entry = NULL;
	struct packet *p;
	struct endpoint *to;
	bool is_own, is_serving;
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
	if (!is_ip(skb)) {
		if (ANNOUNCES && IPV4_ENABLED && skb->protocol == bpf_htons(ETH_P_ARP))
			return asked_for_address(skb);
		return TC_ACT_UNSPEC;
	}
	if (!parse_network(skb, p)) {
		if (!endpoint_at(&p->destination)) /* the node's own affair */
			return TC_ACT_UNSPEC;
		read_clock(p);
		return finish(skb, p, TC_ACT_SHOT);
	}
	is_own = is_node(&p->destination);
	to = is_own ? NULL : endpoint_at(&p->destination);
	if (!to && is_solicitation(skb, p))
		return asked_for_address(skb);
	is_serving = !to && serves(SERVES_OUTSIDE);
	if (!is_own && !to && (TUNNEL_INDEX || MASQUERADE4 || MASQUERADE6 || is_serving)) {
		entry = who_is(&p->destination);
		is_own = is_also_node(entry, is_serving);
	}
	if (is_own || (is_serving && !is_for_tunnel(entry))) {
		read_clock(p);
		action = node_receives(skb, p, is_own, is_serving);
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
	if (!f.from_origin) /* of a pod, to who called a Service from outside */
		return from_service(skb, p, c) ? TC_ACT_UNSPEC : TC_ACT_SHOT;
	if (!is_masqueraded(c, true))
		return TC_ACT_UNSPEC;
	port = c->nat_port; /* once: another CPU may take it away */
	if (!port)
		return jump(skb, p, STEP_MASQUERADE_PORT);
	return masquerade(skb, p, c, port, 0) ? TC_ACT_UNSPEC : TC_ACT_SHOT;
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

/* What the node itself sends: as the backend that somebody outside was led to, it answers in the name of what that has
 * called. */
static __always_inline int host_answers(struct __sk_buff *skb, struct packet *p)
{
	struct flow f = {};

	if (!parse_transport(skb, p)) /* what it sends is its own affair */
		return TC_ACT_UNSPEC;
	if (p->icmp_kind == ICMP_IS_ERROR)
		return jump_with_error(skb, p, ERROR_OF_HOST);
	find(&f, p);
	if (!f.connection || f.from_origin || f.connection->way[1] != WAY_HOST)
		return TC_ACT_UNSPEC;
	p->vouched = 1;
	remember(p);
	touch(&f, p);
	return from_service(skb, p, f.connection) ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

int to_netdev(struct __sk_buff *skb)
{
	struct address to;
	struct packet *p;
	bool is_backend;
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
	is_backend = !skb->ingress_ifindex && serves(SERVES_ITSELF);
	if (!is_backend && (!LEGACY_ROUTING || !(MASQUERADE4 || MASQUERADE6 || serves(SERVES_OUTSIDE))))
		return TC_ACT_UNSPEC;
	p = take(EGRESS);
	if (!p)
		return TC_ACT_SHOT;
	if (!parse_network(skb, p))
		return TC_ACT_UNSPEC;
	if (is_backend) {
		read_clock(p);
		action = host_answers(skb, p);
	} else {
		if (is_node(&p->source) || !endpoint_at(&p->source))
			return TC_ACT_UNSPEC;
		read_clock(p);
		p->device = skb->ifindex;
		action = pod_leaves(skb, p);
	}
	return action == TC_ACT_UNSPEC ? action : finish(skb, p, action); /* from_pod has counted what passes */
}
