/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The node's outward device, tc ingress: packets for pods of this node, and replies to masqueraded connections. */
#include "plexus.h"
#include "parse.h"
#include "events.h"
#include "policy.h"
#include "flow.h"
#include "rewrite.h"
#include "nat.h"
#include "forward.h"
#include "deliver.h"

#undef THIS_FILE
#define THIS_FILE FILE_NETDEV

/* Nobody out there is this node or has an address of its blocks; and with a tunnel, pods come through it, not here. */
static __always_inline bool identify(struct packet *p, struct way *came)
{
	struct ipcache_entry *sender = who_is(p->source);

	p->source_identity = sender ? sender->identity : IDENTITY_WORLD;
	if (p->source_identity == IDENTITY_HOST || endpoint_at(p->source))
		return REFUSE(p, DROP_INVALID_SOURCE);
	if (sender && sender->node && (TUNNEL_INDEX || sender->node == NODE_ADDRESS))
		return REFUSE(p, DROP_INVALID_SOURCE);
	came->to = sender && sender->node ? WAY_POD : WAY_OUT;
	came->hop = sender ? sender->node : 0;
	return true;
}

static __always_inline bool is_way_back(struct packet *p, __u8 way, __be32 hop)
{
	return way == WAY_OUT || (way == WAY_POD && !TUNNEL_INDEX);
}

/* For the node itself: if it answers a masqueraded connection, it goes on to the pod. */
static __always_inline int node_receives(struct __sk_buff *skb, struct packet *p)
{
	struct endpoint *to;

	/* What does not parse is the node's own affair: its stack takes fragments and the rest. */
	if (!MASQUERADE || !parse_ip4(skb, p) || p->is_error)
		return TC_ACT_UNSPEC;
	if (!unmasquerade(skb, p))
		return TC_ACT_SHOT;
	if (p->destination == NODE_ADDRESS)
		return TC_ACT_UNSPEC;
	to = endpoint_at(p->destination);
	return to ? deliver(skb, p, to) : DROP(p, DROP_UNROUTABLE);
}

/* Routed on by this node, it would enter the tunnel and look as if this node vouched for its sender. */
static __always_inline bool is_for_tunnel(__be32 address)
{
	struct ipcache_entry *entry = TUNNEL_INDEX ? who_is(address) : NULL;

	return entry && entry->node && entry->node != NODE_ADDRESS;
}

int from_netdev(struct __sk_buff *skb)
{
	struct packet p = { .direction = INGRESS };
	struct endpoint *to = NULL;
	struct iphdr *ip;
	int action;

	/* A tag is of another network on this wire, and another device's affair. */
	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present || !can_read(skb, ETH_HLEN + sizeof(*ip)))
		return TC_ACT_UNSPEC;
	ip = (void *)(long)skb->data + ETH_HLEN;
	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return TC_ACT_UNSPEC;
	p.source = ip->saddr;
	p.destination = ip->daddr;
	p.protocol = ip->protocol;
	if (p.destination == NODE_ADDRESS) {
		read_clock(&p);
		action = node_receives(skb, &p);
		return action == TC_ACT_UNSPEC ? action : finish(skb, &p, action);
	}
	to = endpoint_at(p.destination);
	if (!to && !is_for_tunnel(p.destination)) /* for another address of the node, or to be routed by it */
		return TC_ACT_UNSPEC;
	read_clock(&p);
	if (!to)
		action = DROP(&p, DROP_ENCAP_PROHIBITED);
	else
		action = parse_ip4(skb, &p) ? deliver(skb, &p, to) : TC_ACT_SHOT;
	return finish(skb, &p, action);
}
