/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The step that answers what no Service takes (a Service without backends; an address or a port of the Services' range
 * that no Service has), so that the sender learns of it at once: a reset for TCP, "port unreachable" for all else. The
 * answer bears the address that was called. The packet itself is dropped, and counted with its reason, answered or not. */
#include "plexus.h"
#include "devices.h"
#include "parse.h"
#include "steps.h"
#include "events.h"
#include "checksum.h"

#define ANSWER_HOPS 64
#define PORT_UNREACHABLE4 3 /* codes of "destination unreachable": RFC 792, RFC 4443 */
#define PORT_UNREACHABLE6 4
/* Bytes of the packet that an error quotes. With its own headers it is no longer than 576 (RFC 1812, 4.3.2.3) and 1280
 * bytes (RFC 4443, 2.4 (c)). */
#define QUOTE4_MAX 512
#define QUOTE6_MAX 1232
#define CHUNK_BYTES 512 /* the most that bpf_csum_diff takes */
/* Errors have a rate (RFC 4443, 2.4 (f)): so many for each device, CPU and window of 134 ms. Devices share places. A reset
 * is no longer than what it answers, and has none. */
#define ERRORS_PER_WINDOW 64
#define ERROR_PLACES 256

struct error_rate {
	__u64 window;
	__u64 sent;
};

struct chunk {
	__be32 word[CHUNK_BYTES / 4 + 1];
};

BPF_PERCPU_ARRAY(error_rates, struct error_rate, ERROR_PLACES);
BPF_PERCPU_ARRAY(chunks, struct chunk, 1);

/* What must never be answered: RFC 1122, 3.2.2; RFC 4443, 2.4 (e); RFC 9293, 3.10.7.1. */
static __always_inline bool may_be_answered(struct __sk_buff *skb, struct packet *p)
{
	if (skb->pkt_type == PACKET_BROADCAST || skb->pkt_type == PACKET_MULTICAST || is_unroutable(&p->source) ||
	    is_unroutable(&p->destination) || p->fragment == FRAGMENT_LATER)
		return false;
	if (p->protocol == IPPROTO_TCP) /* in fragments: nobody knows here how long the segment is */
		return !(p->tcp_flags & TCP_RST) && !p->fragment;
	if (is_icmp(p->protocol))
		return p->icmp_kind == ICMP_IS_ECHO || p->icmp_kind == ICMP_IS_NONE;
	return true;
}

static __always_inline bool is_within_rate(struct __sk_buff *skb, struct packet *p)
{
	__u32 place = skb->ifindex & (ERROR_PLACES - 1);
	struct error_rate *rate = error_rates.lookup(&place);
	__u64 window = p->time >> EVENT_WINDOW_SHIFT;

	if (!rate)
		return false;
	if (rate->window != window) {
		rate->window = window;
		rate->sent = 0;
	}
	return rate->sent++ < ERRORS_PER_WINDOW;
}

/* Bytes of the IP packet. The header says 0 for more than 64 KiB, which a device would have cut. */
static __always_inline __u32 length_of(struct __sk_buff *skb, struct packet *p)
{
	__u32 there = skb->len - ETH_HLEN;

	return p->bytes && p->bytes < there ? p->bytes : there;
}

/* Ethernet and IP headers of the answer, from who was called to who called. `bytes` follow them. */
static __always_inline bool write_headers(struct __sk_buff *skb, struct packet *p, __u8 protocol, __u32 bytes)
{
	struct ethhdr eth, back;

	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return false;
	__builtin_memcpy(back.h_dest, eth.h_source, ETH_ALEN);
	__builtin_memcpy(back.h_source, eth.h_dest, ETH_ALEN);
	back.h_proto = eth.h_proto;
	if (bpf_skb_store_bytes(skb, 0, &back, sizeof(back), BPF_F_INVALIDATE_HASH | BPF_F_RECOMPUTE_CSUM))
		return false;
	if (IPV6_ENABLED && (!IPV4_ENABLED || p->is_ip6)) {
		struct ip6 ip = {
			.version_class_flow = bpf_htonl(6u << 28),
			.payload_bytes = bpf_htons(bytes),
			.next = protocol,
			.hop_limit = ANSWER_HOPS,
		};

		__builtin_memcpy(ip.source, p->destination.word, 16);
		__builtin_memcpy(ip.destination, p->source.word, 16);
		return !bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	} else {
		struct iphdr ip = {
			.version = 4,
			.ihl = sizeof(ip) / 4,
			.tot_len = bpf_htons(sizeof(ip) + bytes),
			.frag_off = bpf_htons(IP4_DONT),
			.ttl = ANSWER_HOPS,
			.protocol = protocol,
			.saddr = p->destination.word[3],
			.daddr = p->source.word[3],
		};

		ip.check = fold(bpf_csum_diff(0, 0, (__be32 *)&ip, sizeof(ip), 0));
		return !bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	}
}

static __always_inline __u32 ip_bytes(struct packet *p)
{
	return IPV6_ENABLED && (!IPV4_ENABLED || p->is_ip6) ? sizeof(struct ip6) : sizeof(struct iphdr);
}

/* The reset that a host sends for a segment of no connection of its own: RFC 9293, 3.10.7.1. */
static __always_inline bool reset(struct __sk_buff *skb, struct packet *p)
{
	struct tcphdr asked, said = {};
	__u32 before = p->l4 - ETH_HLEN, length = length_of(skb, p);

	if (bpf_skb_load_bytes(skb, p->l4, &asked, sizeof(asked)) || length < before + asked.doff * 4)
		return false;
	said.source = asked.dest;
	said.dest = asked.source;
	said.doff = sizeof(said) / 4;
	said.rst = 1;
	if (asked.ack) {
		said.seq = asked.ack_seq;
	} else {
		said.ack = 1;
		said.ack_seq =
			bpf_htonl(bpf_ntohl(asked.seq) + length - before - asked.doff * 4 + asked.syn + asked.fin);
	}
	said.check = fold(bpf_csum_diff(0, 0, (__be32 *)&said, sizeof(said),
	                                pseudo_header(&p->source, &p->destination, sizeof(said), IPPROTO_TCP)));
	return !bpf_skb_change_tail(skb, ETH_HLEN + ip_bytes(p) + sizeof(said), 0) &&
	       write_headers(skb, p, IPPROTO_TCP, sizeof(said)) &&
	       !bpf_skb_store_bytes(skb, ETH_HLEN + ip_bytes(p), &said, sizeof(said), BPF_F_RECOMPUTE_CSUM);
}

/* Add up `bytes` of the packet, a chunk at most. */
static __always_inline bool add_up(struct __sk_buff *skb, struct chunk *chunk, __u32 at, __u64 bytes, __s64 *sum)
{
	__u64 last;

	if (bytes > CHUNK_BYTES)
		bytes = CHUNK_BYTES;
	last = bytes - 1;
	/* The verifier wants to see the bound, and before kernel 6.8 learns nothing from "is not 0". */
	asm volatile("" : "+r"(last));
	if (last >= CHUNK_BYTES)
		return false;
	bytes = last + 1;
	chunk->word[bytes / 4] = 0; /* what is left of the last word */
	if (bpf_skb_load_bytes(skb, at, chunk, bytes))
		return false;
	*sum = bpf_csum_diff(0, 0, chunk->word, (bytes + 3) & ~3ull, *sum);
	return true;
}

/* The packet becomes what the error quotes: its end is cut, and room made before it. */
static __always_inline bool complain(struct __sk_buff *skb, struct packet *p)
{
	bool is_ip6 = IPV6_ENABLED && (!IPV4_ENABLED || p->is_ip6);
	__u32 quoted = length_of(skb, p), most = is_ip6 ? QUOTE6_MAX : QUOTE4_MAX, zero = 0;
	struct icmp icmp = {
		.type = is_ip6 ? ICMP6_DEST_UNREACH : ICMP_DEST_UNREACH,
		.code = is_ip6 ? PORT_UNREACHABLE6 : PORT_UNREACHABLE4,
	};
	struct chunk *chunk = chunks.lookup(&zero);
	__u8 protocol = is_ip6 ? IPPROTO_ICMP6 : IPPROTO_ICMP;
	__s64 sum = 0;

	if (quoted > most)
		quoted = most;
	if (!chunk)
		return false;
	if (is_ip6)
		sum = pseudo_header(&p->source, &p->destination, sizeof(icmp) + quoted, protocol);
	sum = bpf_csum_diff(0, 0, (__be32 *)&icmp, sizeof(icmp), sum);
#pragma unroll
	for (int i = 0; i * CHUNK_BYTES < QUOTE6_MAX; i++) {
		if (quoted > i * CHUNK_BYTES &&
		    !add_up(skb, chunk, ETH_HLEN + i * CHUNK_BYTES, quoted - i * CHUNK_BYTES, &sum))
			return false;
	}
	icmp.check = fold(sum);
	return !bpf_skb_change_tail(skb, ETH_HLEN + quoted, 0) &&
	       !bpf_skb_adjust_room(skb, ip_bytes(p) + sizeof(icmp), BPF_ADJ_ROOM_MAC, 0) &&
	       write_headers(skb, p, protocol, sizeof(icmp) + quoted) &&
	       !bpf_skb_store_bytes(skb, ETH_HLEN + ip_bytes(p), &icmp, sizeof(icmp), BPF_F_RECOMPUTE_CSUM);
}

/* Back to who sent it: into the pod; to the node's stack as if it came from outside, which is where it went; or out again. */
static __always_inline int answer(struct __sk_buff *skb, struct packet *p)
{
	if (!may_be_answered(skb, p))
		return TC_ACT_SHOT;
	if (p->protocol == IPPROTO_TCP ? !reset(skb, p) : !is_within_rate(skb, p) || !complain(skb, p))
		return TC_ACT_SHOT;
	if (!leads_out(skb->ifindex))
		return bpf_redirect_peer(skb->ifindex, 0);
	return bpf_redirect(skb->ifindex, p->direction == EGRESS ? BPF_F_INGRESS : 0);
}

int reject(struct __sk_buff *skb)
{
	struct packet *p = go_on_with();

	if (!p)
		return TC_ACT_SHOT;
	finish(skb, p, TC_ACT_SHOT);
	return answer(skb, p);
}
