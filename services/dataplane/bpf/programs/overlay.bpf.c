/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The tunnel device, tc ingress: what other nodes send to pods of this node, with the sender's identity in the key. */
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
/* What a pod sends into the tunnel goes past the stack: netfilter that saw only the answer would call it invalid. */
#define BY_STACK 0
#include "deliver.h"

#undef THIS_FILE
#define THIS_FILE FILE_OVERLAY

/* Only the node that an address lives on may speak for it: a stranger's tunnel packet is not believed.
 * A node's own traffic bears no pod's identity, but may be the world's, which a Service has led there; a pod's may be newer
 * in the tunnel key than in the map. */
static __always_inline bool identify(struct packet *p, struct way *came)
{
	struct ipcache_entry *sender = who_is(&p->source);

	if (!sender || is_none(&sender->node) || !is_same(&sender->node, &p->tunnel_from))
		return REFUSE(p, DROP_INVALID_SOURCE);
	p->source_identity = p->tunnel_identity;
	if (sender->identity == IDENTITY_REMOTE_NODE && is_worlds(p->tunnel_identity)) {
		p->source_identity =
			world(&p->source); /* it may have other families than we: the world has other numbers there */
	} else if (sender->identity == IDENTITY_REMOTE_NODE || p->tunnel_identity < IDENTITY_CLUSTER_MIN ||
	           p->tunnel_identity >= IDENTITY_LOCAL_MIN) {
		p->source_identity = sender->identity;
	} else {
		p->is_ahead = p->source_identity != sender->identity;
	}
	came->to = WAY_POD;
	came->hop = sender->node;
	return true;
}

static __always_inline bool is_way_back(struct packet *p, __u8 way, struct address *hop)
{
	return way == WAY_POD && is_same(hop, &p->tunnel_from);
}

static __always_inline bool read_tunnel_key(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_tunnel_key key = {};

	if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), UNDERLAY_IP6 ? BPF_F_TUNINFO_IPV6 : 0))
		return REFUSE(p, DROP_NO_TUNNEL_KEY);
	p->tunnel_identity = key.tunnel_id;
	if (UNDERLAY_IP6)
		set_ip6(&p->tunnel_from, key.remote_ipv6);
	else
		set_ip4(&p->tunnel_from, bpf_htonl(key.remote_ipv4));
	return true;
}

/* For the node itself: what answers who called a Service here goes back to them. Of all else no port decides, so the stack
 * gets fragments as they come, and puts them together. */
static __always_inline int node_receives(struct __sk_buff *skb, struct packet *p)
{
	if (!serves(SERVES_OUTSIDE))
		return TC_ACT_OK;
	if (!parse_transport(skb, p)) {
		forget(p);
		return TC_ACT_OK;
	}
	if (p->icmp_kind == ICMP_IS_ERROR) {
		p->is_known = 1;
		return jump_with_error(skb, p, ERROR_FOR_NODE);
	}
	if (!unmasquerade(skb, p, true))
		return TC_ACT_SHOT;
	if (p->for_client)
		return jump(skb, p, STEP_ANSWER);
	forget(p);
	return TC_ACT_OK;
}

static __always_inline int tunnel_delivers(struct __sk_buff *skb, struct packet *p)
{
	struct way came = {};
	struct ipcache_entry *entry;
	struct endpoint *to;

	if (skb->vlan_present)
		return DROP(p, DROP_VLAN);
	if (!is_ip(skb))
		return DROP(p, DROP_UNSUPPORTED_L3);
	if (!read_tunnel_key(skb, p) || !parse_network(skb, p))
		return TC_ACT_SHOT;
	/* The frame's addresses meant the other node's veth: without this the stack takes it for someone else's. */
	bpf_skb_change_type(skb, PACKET_HOST);
	to = endpoint_at(&p->destination);
	p->vouched = 1; /* once `identify`, or the way back, has let it through */
	if (to)
		return parse_transport(skb, p) ? deliver(skb, p, to) : TC_ACT_SHOT;
	entry = who_is(&p->destination);
	if (!entry || entry->identity != IDENTITY_HOST || entry->flags & IPCACHE_UNADVERTISED)
		return DROP(p, DROP_UNROUTABLE);
	return identify(p, &came) ? node_receives(skb, p) : TC_ACT_SHOT;
}

int from_overlay(struct __sk_buff *skb)
{
	struct packet *p = take(INGRESS);

	if (!p)
		return TC_ACT_SHOT;
	read_clock(p);
	return finish(skb, p, tunnel_delivers(skb, p));
}
