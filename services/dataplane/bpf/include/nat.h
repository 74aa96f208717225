/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Masquerade: a pod leaves the cluster with the node's address and a port of a range kept for that. */
#ifndef PLEXUS_NAT_H
#define PLEXUS_NAT_H

#undef THIS_FILE
#define THIS_FILE FILE_NAT

#define NAT_FREE_TRIES 8 /* before the ports of connections are taken that the far end may remember */
#define NAT_PORTS (NAT_PORT_MAX - NAT_PORT_MIN + 1)

static __always_inline void nat_key_of(struct nat_key *key, const struct address *remote, __be16 remote_port,
                                       __be16 node_port, __u8 protocol)
{
	key->remote_address = *remote;
	set_node(&key->node_address, !is_ip4(remote));
	key->remote_port = is_icmp(protocol) ? 0 : remote_port; /* ICMP has the identifier alone, which is node_port */
	key->node_port = node_port;
	key->protocol = protocol;
	key->pad[0] = 0;
	key->pad[1] = 0;
	key->pad[2] = 0;
}

/* The connection that holds this mapping, or held it; NULL: another, or none. */
static __always_inline struct connection *holder_of(struct nat_key *key, struct nat_entry *entry, struct packet *p)
{
	struct connection *c;
	__be16 remote_port = is_icmp(key->protocol) ? answering_port(entry->pod_port) : key->remote_port;

	key_of(&p->holder, &entry->pod_address, entry->pod_port, &key->remote_address, remote_port, key->protocol);
	c = connection_at(&p->holder);
	/* Without a port it is just about to take one, maybe this. */
	return c && c->nat_port && c->nat_port != key->node_port ? NULL : c;
}

/* The connection that held this mapping is over: nothing else takes mappings away. */
static __always_inline bool is_abandoned(struct nat_key *key, struct nat_entry *entry, struct packet *p)
{
	struct connection *c = holder_of(key, entry, p);

	return !c || c->expires < p->now;
}

/* May another connection have this port? If both ends have closed, the far one remembers for a minute (TIME-WAIT, RFC 9293,
 * 3.6.1) and answers another pod's SYN as if it were a late packet, so that its connection begins a second later, or
 * never. `at_need`: even so, and even if packets of this end are still to be expected. */
static __always_inline bool is_to_be_had(struct nat_key *key, struct nat_entry *entry, struct packet *p, bool at_need)
{
	struct connection *c = holder_of(key, entry, p);

	if (!c)
		return true;
	if (at_need)
		return c->expires < p->now || is_finished(c, p);
	return (__u64)c->expires + (has_ended(c) ? SECONDS(TIME_WAIT_SECONDS - CT_TCP_FIN_SECONDS) : 0) < p->now;
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

/* Without a jump for each word: the search asks it many times. */
static __always_inline bool is_of(struct nat_entry *entry, struct nat_entry *mine)
{
	__u32 differ = entry->pod_port ^ mine->pod_port;

#pragma unroll
	for (int i = 0; i < 4; i++)
		differ |= entry->pod_address.word[i] ^ mine->pod_address.word[i];
	return !differ;
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

	nat_key_of(key, &p->destination, p->destination_port, p->source_port, p->protocol);
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

/* Rewrite the source of a packet that leaves, with the port that its connection holds, or a free one. */
static __always_inline bool masquerade(struct __sk_buff *skb, struct packet *p, struct connection *c)
{
	struct nat_entry mine = { .pod_address = p->source, .pod_port = p->source_port };
	struct nat_key *key = &p->mapping;
	struct nat_entry *entry;
	struct address node;

	if (is_icmp(p->protocol) && p->icmp_kind != ICMP_IS_ECHO)
		return REFUSE(p, DROP_NAT_PROTOCOL);
	if (!c->nat_port) {
		bool taken = take_port(skb, p, c, &mine);

		count_taken(p);
		if (!taken)
			return false;
	} else {
		nat_key_of(key, &p->destination, p->destination_port, c->nat_port, p->protocol);
		entry = nat.lookup(key);
		if (!entry) { /* evicted: take it back if nobody has it */
			nat.insert(key, &mine);
		} else if (!is_of(entry, &mine)) {
			c->nat_port = 0; /* the next packet finds another */
			return REFUSE(p, DROP_NO_NAT_MAPPING);
		}
	}
	set_node(&node, p->is_ip6);
	return rewrite_source(skb, p, &node, c->nat_port);
}

/* A pod's ICMP error about what it got on a connection that it began: who sent that knows only the node. */
static __always_inline bool masquerade_error(struct __sk_buff *skb, struct packet *p, struct quoted *q,
                                             struct connection *c)
{
	struct address node;

	if (!(c->flags & CT_MASQUERADED) || !c->nat_port)
		return true;
	set_node(&node, p->is_ip6);
	return rewrite_quoted(skb, p, q, false, &node, c->nat_port) && rewrite_source(skb, p, &node, p->source_port);
}

/* The mapping that a packet to the node, from this remote end to this port, belongs to; NULL: none. */
static __always_inline struct nat_entry *mapping_of(struct nat_key *key, const struct address *remote,
                                                    __be16 remote_port, __be16 node_port, __u8 protocol)
{
	if ((bpf_ntohs(node_port) < NAT_PORT_MIN || bpf_ntohs(node_port) > NAT_PORT_MAX) && protocol != IPPROTO_SCTP)
		return NULL;
	nat_key_of(key, remote, remote_port, node_port, protocol);
	return nat.lookup(key);
}

/* A packet to the node: if it answers a masqueraded one, send it on to the pod. */
static __always_inline bool unmasquerade(struct __sk_buff *skb, struct packet *p)
{
	struct nat_entry *entry;
	struct nat_key key;

	if (is_icmp(p->protocol) && p->icmp_kind != ICMP_IS_REPLY)
		return true;
	entry = mapping_of(&key, &p->source, p->source_port, p->destination_port, p->protocol);
	if (!entry || is_abandoned(&key, entry, p)) /* the node's own, or a stranger's whom its stack answers */
		return true;
	/* A SYN in the midst would begin a connection, from outside, and what the pod answers would then not be masqueraded.
	 * Costs TCP's simultaneous open. */
	if (begins(p))
		return REFUSE(p, DROP_NO_NAT_MAPPING);
	remember(p);
	return rewrite_destination(skb, p, &entry->pod_address, entry->pod_port);
}

/* The same for an ICMP error about a masqueraded packet: the pod is told, in the words that it used itself. */
static __always_inline bool unmasquerade_error(struct __sk_buff *skb, struct packet *p)
{
	struct nat_entry *entry;
	struct quoted q = {};
	struct nat_key key;

	if (!parse_quoted(skb, p, &q) || !is_same(&q.source, &p->destination))
		return true; /* the node's own stack judges what it gets */
	entry = mapping_of(&key, &q.destination, q.destination_port, q.source_port, q.protocol);
	if (!entry || is_abandoned(&key, entry, p))
		return true;
	return rewrite_quoted(skb, p, &q, true, &entry->pod_address, entry->pod_port) &&
	       rewrite_destination(skb, p, &entry->pod_address, p->destination_port);
}

#endif
