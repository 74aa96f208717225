/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* ARP and neighbour discovery of a pod. Its gateway is the host side of its veth: say so, for whatever address it asks.
 * What the pod answers to the host's own question goes on to the host, if it is the truth. */
#ifndef PLEXUS_NEIGHBOUR_H
#define PLEXUS_NEIGHBOUR_H

#undef THIS_FILE
#define THIS_FILE FILE_NEIGHBOUR

static __always_inline int answer_arp(struct __sk_buff *skb, struct packet *p)
{
	struct ethhdr *eth;
	struct arp *arp;
	struct endpoint *pod;

	if (!can_read(skb, ETH_HLEN + sizeof(*arp)))
		goto invalid;
	eth = (void *)(long)skb->data;
	arp = (void *)(eth + 1);
	if ((void *)(arp + 1) > (void *)(long)skb->data_end || !is_arp_of_ip4(arp))
		goto invalid;
	set_ip4(&p->source, arp->sender);
	pod = endpoint_at(&p->source);
	if (!pod || pod->interface != skb->ifindex)
		return DROP(p, DROP_INVALID_SOURCE);
	if (arp->operation == bpf_htons(ARP_REPLY)) /* the host's stack asked */
		return TC_ACT_OK;
	if (arp->operation != bpf_htons(ARP_REQUEST))
		goto invalid;
	if (arp->target == arp->sender) /* it looks whether its own address is free: it is */
		return DROP(p, DROP_UNKNOWN_L3_TARGET);
	say_arp(eth, arp, pod->gateway_mac);
	return bpf_redirect(skb->ifindex, 0);
invalid:
	return DROP(p, DROP_INVALID);
}

/* A pod's neighbour discovery, parsed as ICMP_IS_LINK. Routers and listeners are the node's affair, not a pod's. */
static __always_inline int answer_neighbour(struct __sk_buff *skb, struct packet *p)
{
	struct endpoint *pod;
	struct neighbour said;
	struct address asked;
	struct link_head head;

	if (p->icmp_type != ICMP6_NEIGHBOUR_SOLICITATION && p->icmp_type != ICMP6_NEIGHBOUR_ADVERTISEMENT)
		return DROP(p, DROP_FORBIDDEN_ICMP6);
	/* The target and no option is the least; an option that matters is written here. */
	if (p->l4 != ETH_HLEN + sizeof(struct ip6) ||
	    bpf_skb_load_bytes(skb, p->l4, &said, offsetof(struct neighbour, option)) ||
	    bpf_skb_load_bytes(skb, 0, &head, sizeof(head)) || head.ip.hop_limit != NEIGHBOUR_HOP_LIMIT || said.code)
		return DROP(p, DROP_INVALID);
	set_ip6(&asked, said.target);
	if (is_none(&p->source)) /* it looks whether its own address is free: it is */
		return DROP(p, DROP_UNKNOWN_L3_TARGET);
	pod = endpoint_at(&p->source);
	if (!pod || pod->interface != skb->ifindex)
		return DROP(p, DROP_INVALID_SOURCE);
	if (p->icmp_type == ICMP6_NEIGHBOUR_ADVERTISEMENT) /* the host's stack asked */
		return is_same(&asked, &p->source) ? TC_ACT_OK : DROP(p, DROP_INVALID_SOURCE);
	if (is_same(&asked, &p->source))
		return DROP(p, DROP_UNKNOWN_L3_TARGET);
	if (!say_neighbour(skb, &head, &said, &asked, &p->source, pod->gateway_mac, NEIGHBOUR_SOLICITED_OVERRIDE))
		return DROP(p, DROP_WRITE_ERROR);
	return bpf_redirect(skb->ifindex, 0);
}

#endif
