/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The words of ARP and neighbour discovery: a question becomes its answer, in place. No maps. */
#ifndef PLEXUS_LINK_H
#define PLEXUS_LINK_H

/* What comes before a neighbour discovery message. */
struct link_head {
	struct ethhdr eth;
	struct ip6 ip;
} __attribute__((packed));

static __always_inline bool is_arp_of_ip4(const struct arp *arp)
{
	return arp->hardware == bpf_htons(ARP_ETHERNET) && arp->protocol == bpf_htons(ETH_P_IP) &&
	       arp->hardware_bytes == ETH_ALEN && arp->protocol_bytes == sizeof(arp->target);
}

/* The address that was asked for is at `mac`. */
static __always_inline void say_arp(struct ethhdr *eth, struct arp *arp, const __u8 *mac)
{
	__be32 asked = arp->target;

	arp->operation = bpf_htons(ARP_REPLY);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, ETH_ALEN);
	arp->target = arp->sender;
	__builtin_memcpy(arp->sender_mac, mac, ETH_ALEN);
	arp->sender = asked;
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
}

/* The same of IPv6. `head` and `said` are those of the question; only the target of `said` need have been read. */
static __always_inline bool say_neighbour(struct __sk_buff *skb, struct link_head *head, struct neighbour *said,
                                          const struct address *asked, const struct address *to, const __u8 *mac,
                                          __u32 flags)
{
	said->type = ICMP6_NEIGHBOUR_ADVERTISEMENT;
	said->code = 0;
	said->check = 0;
	said->flags = bpf_htonl(flags);
	said->option = OPTION_TARGET_MAC;
	said->option_units = 1;
	__builtin_memcpy(said->mac, mac, ETH_ALEN);
	__builtin_memcpy(head->eth.h_dest, head->eth.h_source, ETH_ALEN);
	__builtin_memcpy(head->eth.h_source, mac, ETH_ALEN);
	head->ip.payload_bytes = bpf_htons(sizeof(*said));
	__builtin_memcpy(head->ip.destination, to->word, 16);
	__builtin_memcpy(head->ip.source, asked->word, 16);
	said->check = fold(bpf_csum_diff(0, 0, (__be32 *)said, sizeof(*said),
	                                 pseudo_header(asked, to, sizeof(*said), IPPROTO_ICMP6)));
	return !bpf_skb_change_tail(skb, sizeof(*head) + sizeof(*said), 0) &&
	       !bpf_skb_store_bytes(skb, 0, head, sizeof(*head), BPF_F_INVALIDATE_HASH) &&
	       !bpf_skb_store_bytes(skb, sizeof(*head), said, sizeof(*said), 0);
}

#endif
