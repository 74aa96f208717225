/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Where a packet goes from here, and how it is sent there. */
#ifndef PLEXUS_FORWARD_H
#define PLEXUS_FORWARD_H

#undef THIS_FILE
#define THIS_FILE FILE_FORWARD

#define AF_INET 2
#define AF_INET6 10

/* bcc 0.26 declares this helper with one argument too few. */
static long (*redirect_to_neighbour)(__u32 interface, struct bpf_redir_neigh *, int bytes,
                                     __u64 flags) = (void *)BPF_FUNC_redirect_neigh;

static __always_inline struct endpoint *endpoint_at(const struct address *address)
{
	struct endpoint_key key = { .address = *address };

	return endpoints.lookup(&key);
}

struct way {
	__u8 to; /* WAY_* */
	bool masquerade;
	struct address hop;
};

/* Is the pod's own address unknown where this packet goes? Asked once a connection. */
static __always_inline bool needs_masquerade(struct packet *p, struct ipcache_entry *entry)
{
	struct masq_exclude_key key = { .prefix_bits = 128, .address = p->destination };

	if (p->is_ip6 ? !MASQUERADE6 : !MASQUERADE4)
		return false;
	/* With a tunnel the fabric does not know pod addresses: another node too must see this node's. */
	return (!entry || entry->identity >= IDENTITY_LOCAL_MIN || TUNNEL_INDEX != 0) && !masq_exclude.lookup(&key);
}

/* The device that the node's routes send this packet to; 0: none. Asked once a connection, so that what has no route is
 * dropped here with a reason and not later without. "Not forwarded" is no route, a broadcast, or an address that the
 * node has had for no more than seconds. */
static __always_inline __u32 device_of_route(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex };
	long failed;

	if (p->is_ip6) {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, p->source.word, 16);
		__builtin_memcpy(fib.ipv6_dst, p->destination.word, 16);
	} else {
		fib.family = AF_INET;
		fib.ipv4_src = p->source.word[3];
		fib.ipv4_dst = p->destination.word[3];
	}
	failed = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	if (failed < 0 || failed == BPF_FIB_LKUP_RET_BLACKHOLE || failed == BPF_FIB_LKUP_RET_UNREACHABLE ||
	    failed == BPF_FIB_LKUP_RET_PROHIBIT || failed == BPF_FIB_LKUP_RET_FWD_DISABLED ||
	    failed == BPF_FIB_LKUP_RET_NOT_FWDED)
		return 0;
	return fib.ifindex;
}

/* The way to an address that is not a pod of this node. */
static __always_inline bool find_way(struct __sk_buff *skb, struct packet *p, struct way *way)
{
	struct ipcache_entry *entry = who_is(&p->destination);
	__u32 device;

	__builtin_memset(&way->hop, 0, sizeof(way->hop));
	way->masquerade = false;
	if (entry && entry->identity == IDENTITY_HOST) {
		way->to = WAY_HOST;
		return true;
	}
	if (entry && is_node(&entry->node)) /* of this node's blocks, but no pod has it */
		return REFUSE(p, DROP_UNROUTABLE);
	way->to = WAY_OUT;
	if (entry && !is_none(&entry->node)) {
		way->to = WAY_POD;
		if (!(entry->flags & IPCACHE_ROUTED))
			way->hop = entry->node;
		if (LEGACY_ROUTING || TUNNEL_INDEX || !(entry->flags & IPCACHE_ROUTED))
			return true;
	} else if (is_unroutable(&p->destination)) {
		return REFUSE(p, DROP_UNKNOWN_L3_TARGET);
	} else if (is_of_services(&p->destination)) {
		return REFUSE(p, DROP_NO_BACKEND);
	}
	device = device_of_route(skb, p);
	if (!device)
		return REFUSE(p, DROP_FIB);
	if (!leads_out(device)) { /* the stack and its own rules know that way */
		way->to = WAY_HOST;
		return true;
	}
	set_device(&way->hop, device);
	if (way->to == WAY_POD)
		return true;
	way->masquerade = needs_masquerade(p, entry);
	return true;
}

/* Routing a packet costs it one hop. Invalidates nothing: written in place. */
static __always_inline bool age(struct __sk_buff *skb, struct packet *p)
{
	__u32 check;

	if (IPV6_ENABLED && (!IPV4_ENABLED || p->is_ip6)) {
		struct ip6 *ip = (void *)(long)skb->data + ETH_HLEN;

		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return REFUSE(p, DROP_INVALID);
		if (ip->hop_limit <= 1)
			return REFUSE(p, DROP_TTL);
		ip->hop_limit--;
		bpf_csum_update(skb, (__u16)~bpf_htons(1)); /* where the device has summed the packet up */
	} else {
		struct iphdr *ip = (void *)(long)skb->data + ETH_HLEN;

		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return REFUSE(p, DROP_INVALID);
		if (ip->ttl <= 1)
			return REFUSE(p, DROP_TTL);
		check = ip->check + bpf_htons(0x0100); /* RFC 1141 */
		ip->check = check + (check >= 0xffff);
		ip->ttl--;
	}
	return true;
}

/* Both are at even places, which the compiler does not know: else it copies bytes. */
static __always_inline void set_mac(__u8 *to, const __u8 *mac)
{
	__builtin_memcpy(__builtin_assume_aligned(to, 2), __builtin_assume_aligned(mac, 2), ETH_ALEN);
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
	set_mac(eth->h_dest, to->mac);
	set_mac(eth->h_source, to->gateway_mac);
	return bpf_redirect_peer(to->interface, 0);
}

/* Out by a device, as its routes say. */
static __always_inline int out(struct __sk_buff *skb, struct packet *p, __u32 device)
{
	if (LEGACY_ROUTING) /* it takes the hop off, too */
		return TC_ACT_OK;
	return age(skb, p) ? redirect_to_neighbour(device, NULL, 0, 0) : TC_ACT_SHOT;
}

/* To a pod of the node at `hop`, which learns the identity of who sends. */
static __always_inline int by_tunnel(struct __sk_buff *skb, struct packet *p, struct address *hop, __u32 identity)
{
	struct bpf_tunnel_key key = { .tunnel_id = identity, .tunnel_ttl = 64 };
	__u64 flags = BPF_F_ZERO_CSUM_TX;

	if (!age(skb, p))
		return TC_ACT_SHOT;
	if (UNDERLAY_IP6) {
		__builtin_memcpy(key.remote_ipv6, hop->word, 16);
		flags = BPF_F_TUNINFO_IPV6; /* with a checksum: IPv6 does not go without (RFC 8200, 8.1) */
	} else {
		key.remote_ipv4 = bpf_ntohl(hop->word[3]);
	}
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags))
		return DROP(p, DROP_WRITE_ERROR);
	return bpf_redirect(TUNNEL_INDEX, 0);
}

/* Past the node's stack: to a neighbour on its own device, or by a device as its routes say. */
static __always_inline int past_stack(struct __sk_buff *skb, struct packet *p, struct address *hop)
{
	struct bpf_redir_neigh neighbour = {};

	if (!age(skb, p))
		return TC_ACT_SHOT;
	if (is_device(hop))
		return redirect_to_neighbour(hop->word[3], NULL, 0, 0);
	if (is_ip4(hop)) {
		neighbour.nh_family = AF_INET;
		neighbour.ipv4_nh = hop->word[3];
	} else {
		neighbour.nh_family = AF_INET6;
		__builtin_memcpy(neighbour.ipv6_nh, hop->word, 16);
	}
	return redirect_to_neighbour(DEVICE_INDEX, &neighbour, sizeof(neighbour), 0);
}

/* With native routing. */
static __always_inline int to_neighbour(struct __sk_buff *skb, struct packet *p, struct address *hop)
{
	return LEGACY_ROUTING ? out(skb, p, hop->word[3]) : past_stack(skb, p, hop);
}

/* To a pod of the node at `hop`; a device: its routes know. */
static __always_inline int to_node(struct __sk_buff *skb, struct packet *p, struct address *hop, __u32 identity)
{
	return TUNNEL_INDEX ? by_tunnel(skb, p, hop, identity) : to_neighbour(skb, p, hop);
}

/* The device whose address a connection bears that is relayed; 0: what enters the tunnel. */
static __always_inline __u32 relays_by(struct connection *c)
{
	if (is_device(&c->hop))
		return c->hop.word[3];
	return TUNNEL_INDEX && c->way[1] == WAY_POD ? 0 : DEVICE_INDEX;
}

/* What came from outside for a backend elsewhere: past the stack, which takes nothing in that bears an address of its own. The
 * tunnel's other end learns that it is the world who calls. */
static __always_inline int relay(struct __sk_buff *skb, struct packet *p, __u8 to, struct address *hop)
{
	return TUNNEL_INDEX && to == WAY_POD ? by_tunnel(skb, p, hop, world(&p->source)) : past_stack(skb, p, hop);
}

/* The way that was found. `identity` is the sender's; `to` the pod that it goes to, if it is one of this node. */
static __always_inline int send(struct __sk_buff *skb, struct packet *p, struct way *way, __u32 identity,
                                struct endpoint *to)
{
	switch (way->to) {
	case WAY_LOCAL:
		/* Without one: it was here when the connection began. */
		if (!to)
			return DROP(p, DROP_UNROUTABLE);
		return LEGACY_ROUTING ? TC_ACT_OK : into_pod(skb, p, to);
	case WAY_HOST:
		return TC_ACT_OK;
	case WAY_POD:
		return to_node(skb, p, &way->hop, identity);
	default:
		return out(skb, p, way->hop.word[3]);
	}
}

#endif
