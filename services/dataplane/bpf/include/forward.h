/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Where a packet goes from here, and how it is sent there. */
#ifndef PLEXUS_FORWARD_H
#define PLEXUS_FORWARD_H

#undef THIS_FILE
#define THIS_FILE FILE_FORWARD

#define AF_INET 2

/* bcc 0.26 declares this helper with one argument too few. */
static long (*redirect_to_neighbour)(__u32 interface, struct bpf_redir_neigh *, int bytes,
                                     __u64 flags) = (void *)BPF_FUNC_redirect_neigh;
#define FIRST_MULTICAST 224 /* and everything above: reserved, broadcast */
#define LOOPBACK 127

static __always_inline struct endpoint *endpoint_at(__be32 address)
{
	struct endpoint_key key = { .address = address };

	return endpoints.lookup(&key);
}

struct way {
	__u8 to; /* WAY_* */
	bool masquerade;
	__be32 hop;
};

/* The way to an address that is not a pod of this node. */
static __always_inline bool find_way(struct __sk_buff *skb, struct packet *p, struct way *way)
{
	struct ipcache_entry *entry = who_is(p->destination);
	__u8 first = bpf_ntohl(p->destination) >> 24;
	struct bpf_fib_lookup fib = {};
	long failed;

	way->hop = 0;
	way->masquerade = false;
	if (entry && entry->identity == IDENTITY_HOST) {
		way->to = WAY_HOST;
		return true;
	}
	if (entry && entry->node == NODE_ADDRESS) /* of this node's blocks, but no pod has it */
		return REFUSE(p, DROP_UNROUTABLE);
	if (entry && entry->node) {
		way->to = WAY_POD;
		way->hop = entry->node;
		return true;
	}
	if (first >= FIRST_MULTICAST || first == LOOPBACK || first == 0)
		return REFUSE(p, DROP_UNKNOWN_L3_TARGET);
	/* Asked once a connection, so that what has no route is dropped here with a reason and not later without.
	 * "Not forwarded" is no route, a broadcast, or an address of the node that nobody named. */
	fib.family = AF_INET;
	fib.ifindex = skb->ifindex;
	fib.ipv4_src = p->source;
	fib.ipv4_dst = p->destination;
	failed = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	if (failed < 0 || failed == BPF_FIB_LKUP_RET_BLACKHOLE || failed == BPF_FIB_LKUP_RET_UNREACHABLE ||
	    failed == BPF_FIB_LKUP_RET_PROHIBIT || failed == BPF_FIB_LKUP_RET_FWD_DISABLED ||
	    failed == BPF_FIB_LKUP_RET_NOT_FWDED)
		return REFUSE(p, DROP_FIB);
	way->to = WAY_OUT;
#if MASQUERADE
	/* With a tunnel the fabric does not know pod addresses: another node too must see this node's. */
	way->masquerade = (p->destination & NATIVE_MASK) != NATIVE_CIDR && (!entry || TUNNEL_INDEX != 0);
#endif
	return true;
}

/* Routing a packet costs it one hop. Invalidates nothing: written in place. */
static __always_inline bool age(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr *ip = (void *)(long)skb->data + ETH_HLEN;
	__u32 check;

	if ((void *)(ip + 1) > (void *)(long)skb->data_end)
		return REFUSE(p, DROP_INVALID);
	if (ip->ttl <= 1)
		return REFUSE(p, DROP_TTL);
	check = ip->check + bpf_htons(0x0100); /* RFC 1141 */
	ip->check = check + (check >= 0xffff);
	ip->ttl--;
	return true;
}

/* Into the pod's namespace, past the host's stack. Only from the ingress hook of a device. */
static __always_inline int into_pod(struct __sk_buff *skb, struct packet *p, struct endpoint *to)
{
	struct ethhdr *eth;

	if (!age(skb, p))
		return TC_ACT_SHOT;
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return DROP(p, DROP_INVALID);
	__builtin_memcpy(eth->h_dest, to->mac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, to->gateway_mac, ETH_ALEN);
	return bpf_redirect_peer(to->interface, 0);
}

/* To a pod of the node `hop`. */
static __always_inline int to_node(struct __sk_buff *skb, struct packet *p, __be32 hop, __u32 identity)
{
	if (!age(skb, p))
		return TC_ACT_SHOT;
#if TUNNEL_INDEX
	struct bpf_tunnel_key key = {
		.tunnel_id = identity,
		.remote_ipv4 = bpf_ntohl(hop),
		.tunnel_ttl = 64,
	};

	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), BPF_F_ZERO_CSUM_TX))
		return DROP(p, DROP_WRITE_ERROR);
	return bpf_redirect(TUNNEL_INDEX, 0);
#elif DIRECT_ROUTES
	struct bpf_redir_neigh neighbour = { .nh_family = AF_INET, .ipv4_nh = hop };

	return redirect_to_neighbour(DEVICE_INDEX, &neighbour, sizeof(neighbour), 0);
#else
	return redirect_to_neighbour(DEVICE_INDEX, NULL, 0, 0);
#endif
}

#endif
