/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The yardstick: a tc program that does a little of what the datapath does (the clock, hash map look-ups, a store into
 * the packet) and is timed in turns with it. What packets cost is recorded as ratios to this (bench/recorded.py), so
 * whoever changes it has to record anew. */
#include <uapi/linux/bpf.h>

#define LOOKUPS 8
#define ADDRESS_AT 6 /* the sender's, in an Ethernet header */

struct key {
	__u32 word[4];
};

struct value {
	__u64 packets;
	__u64 bytes;
};

BPF_TABLE("hash", struct key, struct value, rows, LOOKUPS);

int yardstick(struct __sk_buff *skb)
{
	__u64 sum = bpf_ktime_get_ns();
	struct key key = {};
	struct value *found;
	__u8 address[6];

#pragma unroll
	for (__u32 i = 0; i < LOOKUPS; i++) {
		key.word[3] = i;
		found = rows.lookup(&key);
		if (found) {
			found->packets++;
			found->bytes += skb->len;
			sum = (sum ^ found->packets) * 0x9e3779b97f4a7c15;
		}
	}
	if (bpf_skb_load_bytes(skb, ADDRESS_AT, address, sizeof(address)))
		return 2;
	address[5] = sum >> 56;
	bpf_skb_store_bytes(skb, ADDRESS_AT, address, sizeof(address), 0);
	return 0;
}
