/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Masquerade: a pod leaves the cluster with the node's address and a port of a range kept for that. How a connection comes
 * to its port is in masquerade_port.bpf.c. */
#ifndef PLEXUS_NAT_H
#define PLEXUS_NAT_H

#undef THIS_FILE
#define THIS_FILE FILE_NAT

static __always_inline void nat_key_of(struct nat_key *key, const struct address *remote, __be16 remote_port,
                                       const struct address *own, __be16 node_port, __u8 protocol)
{
	key->remote_address = *remote;
	key->node_address = *own;
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

	return !c || is_over(c, p);
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

/* Rewrite the source of a packet that leaves, with the port that its connection holds. One that holds none yet, or has lost
 * it, is given one by STEP_MASQUERADE_PORT. `flags`: NAT_*. */
static __always_inline bool masquerade(struct __sk_buff *skb, struct packet *p, struct connection *c, __be16 port,
                                       __u16 flags)
{
	struct nat_entry mine = { .pod_address = p->source, .pod_port = p->source_port, .flags = flags };
	struct nat_key *key = &p->mapping;
	struct nat_entry *entry;

	find_leaves_as(p);
	nat_key_of(key, &p->destination, p->destination_port, &p->leaves_as, port, p->protocol);
	entry = nat.lookup(key);
	if (!entry) { /* evicted: take it back if nobody has it */
		nat.insert(key, &mine);
	} else if (!is_of(entry, &mine)) {
		c->nat_port = 0; /* the next packet finds another */
		return REFUSE(p, DROP_NO_NAT_MAPPING);
	}
	return rewrite_source(skb, p, &p->leaves_as, port);
}

/* The connection of a pod's packet leaves the cluster, and the pod is who began it. Its way may be under change. */
static __always_inline bool is_masqueraded(struct connection *c, bool from_origin)
{
	return from_origin && c->flags & CT_MASQUERADED && c->way[1] != WAY_POD;
}

/* The mapping that a packet to the node, from this remote end to this address and port, belongs to; NULL: none. */
static __always_inline struct nat_entry *mapping_of(struct nat_key *key, const struct address *remote,
                                                    __be16 remote_port, const struct address *own, __be16 node_port,
                                                    __u8 protocol)
{
	if ((bpf_ntohs(node_port) < NAT_PORT_MIN || bpf_ntohs(node_port) > NAT_PORT_MAX) && protocol != IPPROTO_SCTP)
		return NULL;
	nat_key_of(key, remote, remote_port, own, node_port, protocol);
	return nat.lookup(key);
}

/* A packet to the node: if it answers a masqueraded one, it is for the pod; or for the client, if that was led from outside
 * to a backend elsewhere. `relayed_only`: nothing else is looked for. */
static __always_inline bool unmasquerade(struct __sk_buff *skb, struct packet *p, bool relayed_only)
{
	struct nat_entry *entry;
	struct nat_key key;

	if (is_icmp(p->protocol) && p->icmp_kind != ICMP_IS_REPLY)
		return true;
	entry = mapping_of(&key, &p->source, p->source_port, &p->destination, p->destination_port, p->protocol);
	if (!entry || is_abandoned(&key, entry, p)) /* the node's own, or a stranger's whom its stack answers */
		return true;
	if (relayed_only && !(entry->flags & NAT_RELAYED))
		return true;
	/* A SYN in the midst would begin a connection, from outside, and what the pod answers would then not be masqueraded.
	 * Costs TCP's simultaneous open. */
	if (begins(p))
		return REFUSE(p, DROP_NO_NAT_MAPPING);
	remember(p);
	if (entry->flags & NAT_RELAYED)
		p->for_client = 1;
	else
		p->for_pod = 1;
	return rewrite_destination(skb, p, &entry->pod_address, entry->pod_port);
}

#endif
