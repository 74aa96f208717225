/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Masquerade: a pod leaves the cluster with the node's address and a port of a range kept for that. */
#ifndef PLEXUS_NAT_H
#define PLEXUS_NAT_H

#undef THIS_FILE
#define THIS_FILE FILE_NAT

#define NAT_STEP 283 /* a prime, so that tries spread over the range */
#define NAT_FREE_TRIES (NAT_TRIES / 2) /* before others' connections are looked at: each such try costs the verifier */
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

/* The connection that held this mapping is over: nothing else takes mappings away. */
static __always_inline bool is_abandoned(struct nat_key *key, struct nat_entry *entry, struct packet *p)
{
	struct connection_key of = {};
	struct connection *c;
	__be16 remote_port = is_icmp(key->protocol) ? answering_port(entry->pod_port) : key->remote_port;

	key_of(&of, &entry->pod_address, entry->pod_port, &key->remote_address, remote_port, key->protocol);
	c = connection_at(&of);
	/* Without a port it is just about to take one, maybe this. */
	return !c || c->expires < p->now || (c->nat_port && c->nat_port != key->node_port);
}

/* Where the search for a port begins: for the same two ends always at the same, so that a connection whose entry was
 * evicted finds the port that it had. */
static __always_inline __u32 first_try(struct packet *p)
{
	__u32 hash = p->seed;

	hash = (hash ^ p->source.word[3]) *
	       0x9e3779b1; /* odd numbers without a pattern; the shifts spread the high bits */
	hash ^= hash >> 15;
	hash = (hash ^ p->destination.word[3] ^ p->protocol) * 0x85ebca6b;
	hash ^= hash >> 13;
	hash = (hash ^ p->source_port ^ (__u32)p->destination_port << 16) * 0xc2b2ae35;
	return hash ^ hash >> 16;
}

static __always_inline bool is_of(struct nat_entry *entry, struct nat_entry *mine)
{
	return entry->pod_port == mine->pod_port && is_same(&entry->pod_address, &mine->pod_address);
}

/* A port for the connection of this packet: the one that it had, the first that is free or, in the second half of the
 * tries, whose connection is over (mappings stay until somebody needs their port). SCTP keeps its own: nobody can mend
 * its checksum for another. */
static __always_inline bool take_port(struct __sk_buff *skb, struct packet *p, struct connection *c,
                                      struct nat_key *key, struct nat_entry *mine)
{
	__u32 first = p->protocol == IPPROTO_SCTP ? NAT_TRIES - 1 : 0; /* one try for SCTP, the last */
	__u32 start = first_try(p);
	struct nat_entry *entry;
	__be16 port = p->source_port;

	for (__u32 i = first; i < NAT_TRIES; i++) { /* bounded loops: kernel 5.3 */
		/* Counted here, not where a try ends: so only jumps lead back, and kernels before 6.7 take it. */
		if (i > first)
			count(skb, NOTE_NAT_PORT_TAKEN, EGRESS);
		if (p->protocol != IPPROTO_SCTP)
			port = bpf_htons(NAT_PORT_MIN + (start + i * NAT_STEP) % NAT_PORTS);
		nat_key_of(key, &p->destination, p->destination_port, port, p->protocol);
		if (nat.insert(key, mine) == 0) {
			c->nat_port = port;
			return true;
		}
		entry = nat.lookup(key);
		/* Its own: also when another CPU has just taken it for the same connection. */
		if (entry && (is_of(entry, mine) ||
		              (i >= NAT_FREE_TRIES && is_abandoned(key, entry, p) && nat.update(key, mine) == 0))) {
			c->nat_port = port;
			return true;
		}
	}
	count(skb, NOTE_NAT_PORT_TAKEN, EGRESS); /* the last of them too */
	return REFUSE(p, DROP_NO_NAT_MAPPING);
}

/* Rewrite the source of a packet that leaves, with the port that its connection holds, or a free one. */
static __always_inline bool masquerade(struct __sk_buff *skb, struct packet *p, struct connection *c)
{
	struct nat_entry mine = { .pod_address = p->source, .pod_port = p->source_port };
	struct nat_entry *entry;
	struct address node;
	struct nat_key key;

	if (is_icmp(p->protocol) && p->icmp_kind != ICMP_IS_ECHO)
		return REFUSE(p, DROP_NAT_PROTOCOL);
	if (!c->nat_port) {
		if (!take_port(skb, p, c, &key, &mine))
			return false;
	} else {
		nat_key_of(&key, &p->destination, p->destination_port, c->nat_port, p->protocol);
		entry = nat.lookup(&key);
		if (!entry) { /* evicted: take it back if nobody has it */
			nat.insert(&key, &mine);
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
	if (bpf_ntohs(node_port) < NAT_PORT_MIN && protocol != IPPROTO_SCTP)
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
