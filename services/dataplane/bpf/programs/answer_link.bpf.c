/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The step that answers ARP and neighbour solicitations for addresses of Services that this node announces (l2_answers).
 * Each entry bears the time at which it runs out, and this program compares: whatever becomes of the node's processes
 * or of the bus, two nodes never answer for one address. What it does not answer is the node's own affair. */
#include "plexus.h"
#include "parse.h"
#include "steps.h"
#include "events.h"
#include "checksum.h"
#include "link.h"

#define ALL_NODES_MAC { 0x33, 0x33, 0, 0, 0, 1 } /* RFC 2464, 7 */

/* NULL: it is not this node's to answer, or not any more. */
static __always_inline struct l2_answer *answer_for(struct __sk_buff *skb, const struct address *asked)
{
	struct l2_answer_key key = { .device = skb->ifindex, .address = *asked };
	struct l2_answer *found = l2_answers.lookup(&key);

	return found && bpf_ktime_get_boot_ns() < found->until ? found : NULL; /* kernel 5.8 */
}

static __always_inline bool answer_arp(struct __sk_buff *skb)
{
	struct l2_answer *found;
	struct address asked;
	struct {
		struct ethhdr eth;
		struct arp arp;
	} __attribute__((packed)) frame;

	if (bpf_skb_load_bytes(skb, 0, &frame, sizeof(frame)) || !is_arp_of_ip4(&frame.arp))
		return false;
	/* One who says that it has the address asks nothing (RFC 5227, 3). A probe, whose sender is 0.0.0.0, does. */
	if (frame.arp.operation != bpf_htons(ARP_REQUEST) || frame.arp.sender == frame.arp.target)
		return false;
	set_ip4(&asked, frame.arp.target);
	found = answer_for(skb, &asked);
	if (!found)
		return false;
	say_arp(&frame.eth, &frame.arp, found->mac);
	/* What a device has summed up does not include the Ethernet header. */
	return !bpf_skb_store_bytes(skb, 0, &frame.eth, sizeof(frame.eth), BPF_F_INVALIDATE_HASH) &&
	       !bpf_skb_store_bytes(skb, ETH_HLEN, &frame.arp, sizeof(frame.arp), BPF_F_RECOMPUTE_CSUM);
}

static __always_inline bool answer_solicitation(struct __sk_buff *skb, struct packet *p)
{
	struct address all_nodes = { .word = { bpf_htonl(0xff020000), 0, 0, bpf_htonl(1) } };
	__u8 all_nodes_mac[ETH_ALEN] = ALL_NODES_MAC;
	struct l2_answer *found;
	struct neighbour said;
	struct link_head head;
	struct address asked;
	bool is_probe;

	/* RFC 4861, 7.1.1: what was routed, or has an extension header, is none. The checksum is not looked at: the answer says
	 * what is so, whoever it was that asked. */
	if (p->l4 != ETH_HLEN + sizeof(struct ip6) ||
	    bpf_skb_load_bytes(skb, p->l4, &said, offsetof(struct neighbour, option)) ||
	    bpf_skb_load_bytes(skb, 0, &head, sizeof(head)) || said.type != ICMP6_NEIGHBOUR_SOLICITATION || said.code ||
	    head.ip.hop_limit != NEIGHBOUR_HOP_LIMIT)
		return false;
	set_ip6(&asked, said.target);
	found = answer_for(skb, &asked);
	if (!found)
		return false;
	/* Who has no address yet looks whether this one is free; it hears what all nodes are told (RFC 4861, 7.2.4). */
	is_probe = is_none(&p->source);
	if (is_probe)
		__builtin_memcpy(head.eth.h_source, all_nodes_mac, ETH_ALEN);
	return say_neighbour(skb, &head, &said, &asked, is_probe ? &all_nodes : &p->source, found->mac,
	                     is_probe ? NEIGHBOUR_OVERRIDE : NEIGHBOUR_SOLICITED_OVERRIDE);
}

int answer_link(struct __sk_buff *skb)
{
	struct packet *p = go_on_with();
	bool is_answered = false;

	if (!p)
		return TC_ACT_UNSPEC;
	if (IPV4_ENABLED && skb->protocol == bpf_htons(ETH_P_ARP))
		is_answered = answer_arp(skb);
	else if (IPV6_ENABLED && p->is_ip6)
		is_answered = answer_solicitation(skb, p);
	return is_answered ? finish(skb, p, bpf_redirect(skb->ifindex, 0)) : TC_ACT_UNSPEC;
}
