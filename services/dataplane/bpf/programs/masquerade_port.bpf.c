/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The step that finds a port for a connection that leaves the cluster with an address of the node, and sends its packet on.
 * Most connections find theirs with the first try; but each try is a look at the node's own sockets and at who holds the
 * port, which is half of what the verifier would walk of the programs that masquerade. */
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

#undef THIS_FILE
#define THIS_FILE FILE_MASQUERADE_PORT

#define NAT_FREE_TRIES 8 /* before the ports of connections are taken that the far end may remember */

/* May another connection have this port? If both ends have closed, the far one remembers for a minute (TIME-WAIT, RFC 9293,
 * 3.6.1) and answers another pod's SYN as if it were a late packet, so that its connection begins a second later, or
 * never. `at_need`: even so, and even if packets of this end are still to be expected. */
static __always_inline bool is_to_be_had(struct nat_key *key, struct nat_entry *entry, struct packet *p, bool at_need)
{
	struct connection *c = holder_of(key, entry, p);

	if (!c)
		return true;
	if (at_need)
		return is_over(c, p) || is_finished(c, p);
	return is_over(c, p) && p->now - c->expires > (has_ended(c) ? TIME_WAIT_TICKS : 0);
}

/* What a packet to this mapping's port would look like to the node's own sockets. */
static __always_inline void ask_for(struct bpf_sock_tuple *asked, struct nat_key *key, bool is_ip6)
{
	if (is_ip6) {
		__builtin_memcpy(asked->ipv6.saddr, key->remote_address.word, 16);
		__builtin_memcpy(asked->ipv6.daddr, key->node_address.word, 16);
		asked->ipv6.sport = key->remote_port;
		asked->ipv6.dport = key->node_port;
	} else {
		asked->ipv4.saddr = key->remote_address.word[3];
		asked->ipv4.daddr = key->node_address.word[3];
		asked->ipv4.sport = key->remote_port;
		asked->ipv4.dport = key->node_port;
	}
}

/* Does a socket of the node's own listen there, or hold this connection itself? Most do not: the node's own are kept off
 * the range (docs/adr/0006), but for what was there before and for who asks for one of its ports by number. */
static __always_inline bool is_nodes_own(struct __sk_buff *skb, struct packet *p, struct nat_key *key)
{
	bool is_ip6 = IPV6_ENABLED && (!IPV4_ENABLED || p->is_ip6);
	__u32 bytes = is_ip6 ? sizeof(p->asked.ipv6) : sizeof(p->asked.ipv4);
	struct bpf_sock *found;

	ask_for(&p->asked, key, is_ip6);
	if (key->protocol == IPPROTO_TCP)
		found = bpf_skc_lookup_tcp(skb, &p->asked, bytes, BPF_F_CURRENT_NETNS, 0);
	else if (key->protocol == IPPROTO_UDP)
		found = bpf_sk_lookup_udp(skb, &p->asked, bytes, BPF_F_CURRENT_NETNS, 0);
	else
		return false;
	if (!found)
		return false;
	bpf_sk_release(found);
	return true;
}

/* A port for the connection of this packet: the one that it had, or any that is free or whose connection is over
 * (mappings stay until somebody needs their port). After the first, ports are tried at random: whoever repeats a packet
 * that found none looks elsewhere. SCTP keeps its own: nobody can mend its checksum for another. */
static __always_inline bool take_port(struct __sk_buff *skb, struct packet *p, struct connection *c,
                                      struct nat_entry *mine)
{
	struct nat_key *key = &p->mapping;
	struct nat_entry *entry;
	__u32 place = hash_of_ends(p); /* so a connection whose entry was evicted mostly finds the port that it had */

	nat_key_of(key, &p->destination, p->destination_port, &p->leaves_as, p->source_port, p->protocol);
	p->nat_first = p->protocol == IPPROTO_SCTP ? bpf_ntohs(p->source_port) : NAT_PORT_MIN;
	p->nat_ports = p->protocol == IPPROTO_SCTP ? 1 : NAT_PORTS;
	p->nat_taken = 0;
	for (__u32 i = 0; i < NAT_TRIES; i++) { /* bounded loops: kernel 5.3 */
		if (i) { /* here, not where a try ends: so only jumps lead back, and kernels before 6.7 take it */
			place = bpf_get_prandom_u32();
			p->nat_taken++;
		}
		key->node_port = bpf_htons(p->nat_first + place % p->nat_ports);
		if (is_nodes_own(skb, p, key))
			continue;
		if (nat.insert(key, mine) == 0) {
			c->nat_port = key->node_port;
			return true;
		}
		entry = nat.lookup(key);
		/* Its own: also when another CPU has just taken it for the same connection. */
		if (entry && (is_of(entry, mine) ||
		              (is_to_be_had(key, entry, p, i >= NAT_FREE_TRIES) && nat.update(key, mine) == 0))) {
			c->nat_port = key->node_port;
			return true;
		}
	}
	p->nat_taken = p->nat_ports == 1 ? 1 : NAT_TRIES;
	return REFUSE(p, DROP_NO_NAT_MAPPING);
}

/* How many ports were found taken. */
static __always_inline void count_taken(struct packet *p)
{
	__u32 index = NOTE_NAT_PORT_TAKEN * 2 + EGRESS;
	struct counter *counter = p->nat_taken ? counters.lookup(&index) : NULL;

	if (counter)
		counter->packets += p->nat_taken;
}

/* The connection that the packet belongs to: who jumps here has just found it, or made it. */
static __always_inline struct connection *connection_of(struct packet *p)
{
	struct connection_key key;

	key_of(&key, &p->source, p->source_port, &p->destination, p->destination_port, p->protocol);
	return connection_at(&key);
}

static __always_inline int begin(struct __sk_buff *skb, struct packet *p)
{
	struct nat_entry mine = { .pod_address = p->source, .pod_port = p->source_port };
	struct connection *c = connection_of(p);
	bool taken;

	if (is_icmp(p->protocol) && p->icmp_kind != ICMP_IS_ECHO)
		return DROP(p, DROP_NAT_PROTOCOL);
	if (!c) /* evicted by another CPU in this very moment */
		return DROP(p, DROP_CT_INSERT);
	if (c->flags & CT_RELAYED)
		mine.flags = NAT_RELAYED;
	find_leaves_as(p);
	taken = take_port(skb, p, c, &mine);
	count_taken(p);
	if (!taken)
		return TC_ACT_SHOT;
	if (!rewrite_source(skb, p, &p->leaves_as, p->mapping.node_port))
		return TC_ACT_SHOT;
	if (c->flags & CT_RELAYED)
		return relay(skb, p, c->way[1], &c->hop);
	return LEGACY_ROUTING ? TC_ACT_UNSPEC : out(skb, p, p->device); /* the stack has routed it already: to_netdev */
}

int masquerade_port(struct __sk_buff *skb)
{
	struct packet *p = go_on_with();
	int action;

	if (!p)
		return TC_ACT_SHOT;
	action = begin(skb, p);
	return action == TC_ACT_UNSPEC ? action : finish(skb, p, action); /* from_pod has counted what passes */
}
