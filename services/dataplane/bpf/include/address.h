/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Addresses of both families in one form (types.h). No maps. */
#ifndef PLEXUS_ADDRESS_H
#define PLEXUS_ADDRESS_H

#define MAPPED bpf_htonl(0xffff) /* third word of an IPv4 address */

static __always_inline void set_ip4(struct address *to, __be32 address)
{
	to->word[0] = 0;
	to->word[1] = 0;
	to->word[2] = MAPPED;
	to->word[3] = address;
}

static __always_inline void set_ip6(struct address *to, const __be32 *words)
{
	to->word[0] = words[0];
	to->word[1] = words[1];
	to->word[2] = words[2];
	to->word[3] = words[3];
}

static __always_inline bool is_ip4(const struct address *a)
{
	return a->word[2] == MAPPED && !(a->word[0] | a->word[1]);
}

/* The last words first: they differ most. */
static __always_inline bool is_same(const struct address *a, const struct address *b)
{
	return a->word[3] == b->word[3] && a->word[2] == b->word[2] && a->word[1] == b->word[1] &&
	       a->word[0] == b->word[0];
}

static __always_inline bool is_none(const struct address *a)
{
	return !(a->word[0] | a->word[1] | a->word[2] | a->word[3]);
}

/* Is `a` before `b`? Any order does, as long as it is the same for both directions of a connection; the last word counts
 * most. All ones, or 0. Without a jump: the verifier walks what follows once, not once for each way to compare them. */
static __always_inline __u64 is_before(const struct address *a, __be16 a_port, const struct address *b, __be16 b_port)
{
	__u64 borrow = ((__u64)a_port - b_port) >> 63;

#pragma unroll
	for (int i = 0; i < 4; i++) {
		asm volatile("" : "+r"(borrow)); /* or the compiler makes a jump of it */
		borrow = ((__u64)a->word[i] - b->word[i] - borrow) >> 63;
	}
	asm volatile("" : "+r"(borrow));
	return -borrow;
}

/* A next hop that is no address: the routes of a device, by its index, which is 0 where it is not known (yet). Nobody has
 * an address of ::/96 that packets are sent to. */
static __always_inline void set_device(struct address *hop, __u32 device)
{
	hop->word[0] = 0;
	hop->word[1] = 0;
	hop->word[2] = 0;
	hop->word[3] = device;
}

static __always_inline bool is_device(const struct address *hop)
{
	return !hop->word[2] && !(hop->word[0] | hop->word[1]); /* by the first alone for IPv4 */
}

static __always_inline void set_node(struct address *to, bool is_ip6)
{
	if (is_ip6) {
		to->word[0] = NODE_ADDRESS6_0;
		to->word[1] = NODE_ADDRESS6_1;
		to->word[2] = NODE_ADDRESS6_2;
		to->word[3] = NODE_ADDRESS6_3;
	} else {
		set_ip4(to, NODE_ADDRESS);
	}
}

static __always_inline bool is_node(const struct address *a)
{
	if (NODE_ADDRESS && a->word[3] == NODE_ADDRESS && is_ip4(a))
		return true;
	return NODE_ADDRESS6_0 && a->word[3] == NODE_ADDRESS6_3 && a->word[2] == NODE_ADDRESS6_2 &&
	       a->word[1] == NODE_ADDRESS6_1 && a->word[0] == NODE_ADDRESS6_0;
}

#define KNOWS_SERVICES (SERVICES4_MASK || SERVICES6_MASK_0)

/* Of the range of ClusterIPs: nobody has such an address. */
static __always_inline bool is_of_services(const struct address *a)
{
	if (SERVICES4_MASK && is_ip4(a))
		return (a->word[3] & SERVICES4_MASK) == SERVICES4;
	return SERVICES6_MASK_0 && (a->word[0] & SERVICES6_MASK_0) == SERVICES6_0 &&
	       (a->word[1] & SERVICES6_MASK_1) == SERVICES6_1 && (a->word[2] & SERVICES6_MASK_2) == SERVICES6_2 &&
	       (a->word[3] & SERVICES6_MASK_3) == SERVICES6_3;
}

/* An address that no packet may be sent to: loopback, multicast, none, reserved, and IPv6's link-local ones (of IPv4's
 * a cloud has its metadata there). */
static __always_inline bool is_unroutable(const struct address *a)
{
	__u8 first;

	if (is_ip4(a)) {
		first = bpf_ntohl(a->word[3]) >> 24;
		return first >= 224 || first == 127 || first == 0;
	}
	first = bpf_ntohl(a->word[0]) >> 24;
	/* fe80::/10, ff00::/8, and ::/64 with :: and ::1 in it */
	return first == 0xff || (bpf_ntohl(a->word[0]) >> 22) == (0xfe80 >> 6) || !(a->word[0] | a->word[1]);
}

#endif
