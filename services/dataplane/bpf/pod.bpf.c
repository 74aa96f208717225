/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* A pod's veth, host side. from_pod (tc ingress): what the pod sends. to_pod (tc egress): what the host's stack sends
 * to it; what other pods and other nodes send goes past this hook, straight into the pod. */
#include "plexus.h"
#include "parse.h"
#include "events.h"
#include "policy.h"
#include "flow.h"
#include "rewrite.h"
#include "service.h"
#include "nat.h"
#include "forward.h"

#undef THIS_FILE
#define THIS_FILE FILE_POD

/* The gateway of every pod is the host side of its veth: say so, for whatever address it asks. What the pod answers
 * to the host's own question goes on to the host, if it is the truth. */
static __always_inline int answer_arp(struct __sk_buff *skb, struct packet *p)
{
	struct ethhdr *eth;
	struct arp *arp;
	struct endpoint *pod;
	__be32 asked;

	if (!can_read(skb, ETH_HLEN + sizeof(*arp)))
		goto invalid;
	eth = (void *)(long)skb->data;
	arp = (void *)(eth + 1);
	if ((void *)(arp + 1) > (void *)(long)skb->data_end)
		goto invalid;
	if (arp->hardware != bpf_htons(ARP_ETHERNET) || arp->protocol != bpf_htons(ETH_P_IP) ||
	    arp->hardware_bytes != ETH_ALEN || arp->protocol_bytes != sizeof(asked))
		goto invalid;
	p->source = arp->sender;
	pod = endpoint_at(arp->sender);
	if (!pod || pod->interface != skb->ifindex)
		return DROP(p, DROP_INVALID_SOURCE);
	if (arp->operation == bpf_htons(ARP_REPLY)) /* the host's stack asked */
		return TC_ACT_OK;
	if (arp->operation != bpf_htons(ARP_REQUEST))
		goto invalid;
	if (arp->target == arp->sender) /* it looks whether its own address is free: it is */
		return DROP(p, DROP_UNKNOWN_L3_TARGET);
	asked = arp->target;
	arp->operation = bpf_htons(ARP_REPLY);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, ETH_ALEN);
	arp->target = arp->sender;
	__builtin_memcpy(arp->sender_mac, pod->gateway_mac, ETH_ALEN);
	arp->sender = asked;
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, pod->gateway_mac, ETH_ALEN);
	return bpf_redirect(skb->ifindex, 0);
invalid:
	return DROP(p, DROP_INVALID);
}

/* The way of this packet's direction, found once a connection and again after a change. */
static __always_inline bool choose_way(struct __sk_buff *skb, struct packet *p, struct flow *f, struct endpoint *to,
                                       struct way *way)
{
	struct connection *c = f->connection;
	__u32 side = f->from_origin & 1;

	way->to = c->way[side];
	way->hop = c->hop[side];
	if (way->to != WAY_UNKNOWN)
		return true;
	if (to)
		way->to = WAY_LOCAL;
	else if (!find_way(skb, p, way))
		return false;
	if (way->masquerade && f->from_origin)
		c->flags |= CT_MASQUERADED;
	c->hop[side] = way->hop;
	c->way[side] = way->to;
	return true;
}

static __always_inline int send(struct __sk_buff *skb, struct packet *p, struct way *way, struct endpoint *from,
                                struct endpoint *to)
{
	switch (way->to) {
	case WAY_LOCAL:
		/* Without one: it was here when the connection began. */
		return to ? into_pod(skb, p, to) : DROP(p, DROP_UNROUTABLE);
	case WAY_HOST:
		return TC_ACT_OK;
	case WAY_POD:
		return to_node(skb, p, way->hop, from->identity);
	default:
		return age(skb, p) ? redirect_to_neighbour(DEVICE_INDEX, NULL, 0, 0) : TC_ACT_SHOT;
	}
}

/* A connection that may have begun before its service was known: nobody has answered it, or nobody need. */
static __always_inline bool is_unsettled(struct flow *f, struct packet *p)
{
	struct connection *c = f->connection;

	return f->from_origin && c->epoch != p->epoch && (p->protocol == IPPROTO_UDP || !(c->flags & CT_REPLIED));
}

static __always_inline int pod_sends(struct __sk_buff *skb, struct packet *p)
{
	struct endpoint *from, *to = NULL;
	struct connection *c;
	struct translation t = {};
	struct flow f = {};
	struct way way = {};

	if (skb->vlan_present) /* the tag would leave with the packet */
		return DROP(p, DROP_UNSUPPORTED_L3);
	if (skb->protocol == bpf_htons(ETH_P_ARP))
		return answer_arp(skb, p);
	if (skb->protocol != bpf_htons(ETH_P_IP))
		return DROP(p, DROP_UNSUPPORTED_L3);
	if (!parse_ip4(skb, p))
		return TC_ACT_SHOT;
	from = endpoint_at(p->source);
	if (!from || from->interface != skb->ifindex)
		return DROP(p, DROP_INVALID_SOURCE);
	p->source_identity = from->identity;

	if (p->is_error) {
		/* A pod is an end of what it complains about, never a router. */
		if (p->about.destination != p->source)
			return DROP(p, DROP_INVALID);
		if (!admit_error(p))
			return TC_ACT_SHOT;
		to = endpoint_at(p->destination);
		way.to = WAY_LOCAL;
		if (!to && !find_way(skb, p, &way))
			return TC_ACT_SHOT;
		return send(skb, p, &way, from, to);
	}

	find(&f, p);
	if ((!f.connection || is_unsettled(&f, p)) && !balance(skb, p, &f, &t))
		return TC_ACT_SHOT;
	if (!f.connection || f.connection->epoch != p->epoch || f.connection->way[f.from_origin & 1] <= WAY_LOCAL)
		to = endpoint_at(p->destination);
	if (!admit(p, &f, from, to, from->identity))
		return TC_ACT_SHOT;
	c = f.connection;
	if (!c) /* admitted, so there is one: the verifier wants to hear it */
		return TC_ACT_SHOT;
	if (f.from_origin) {
		if (!translated(p, c, &t))
			return TC_ACT_SHOT;
	} else if (!from_service(skb, p, c)) {
		return TC_ACT_SHOT;
	}
	if (!choose_way(skb, p, &f, to, &way))
		return TC_ACT_SHOT;
	if (MASQUERADE && c->flags & CT_MASQUERADED && f.from_origin && way.to == WAY_OUT && !masquerade(skb, p, c))
		return TC_ACT_SHOT;
	return send(skb, p, &way, from, to);
}

static __always_inline int stack_sends(struct __sk_buff *skb, struct packet *p)
{
	struct flow f = {};
	struct endpoint *to;
	struct connection *c;

	if (skb->protocol == bpf_htons(ETH_P_ARP)) /* the host looks for the pod */
		return TC_ACT_OK;
	if (skb->protocol != bpf_htons(ETH_P_IP))
		return DROP(p, DROP_UNSUPPORTED_L3);
	if (!parse_ip4(skb, p))
		return TC_ACT_SHOT;
	to = endpoint_at(p->destination);
	if (!to || to->interface != skb->ifindex)
		return DROP(p, DROP_UNROUTABLE);
	if (p->is_error) /* the node's own stack tells the pod of what it sent; anyone else must have a connection */
		return identity_of(p->source, NULL) == IDENTITY_HOST || admit_error(p) ? TC_ACT_OK : TC_ACT_SHOT;
	find(&f, p);
	if (!admit(p, &f, NULL, to, 0))
		return TC_ACT_SHOT;
	/* A backend that is the node itself answers for its service. */
	c = f.connection;
	return !c || f.from_origin || from_service(skb, p, c) ? TC_ACT_OK : TC_ACT_SHOT;
}

int from_pod(struct __sk_buff *skb)
{
	struct packet p = { .direction = EGRESS };

	read_clock(&p);
	return finish(skb, &p, pod_sends(skb, &p));
}

int to_pod(struct __sk_buff *skb)
{
	struct packet p = { .direction = INGRESS };

	read_clock(&p);
	return finish(skb, &p, stack_sends(skb, &p));
}
