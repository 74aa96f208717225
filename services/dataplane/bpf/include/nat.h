/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Masquerade: a pod leaves the cluster with the node's address and a port of a range kept for that. */
#ifndef PLEXUS_NAT_H
#define PLEXUS_NAT_H

#undef THIS_FILE
#define THIS_FILE FILE_NAT

#define NAT_STEP 283 /* a prime, so that tries spread over the range */
#define NAT_PORTS (NAT_PORT_MAX - NAT_PORT_MIN + 1)

static __always_inline void nat_key_of(struct nat_key *key, __be32 remote, __be16 remote_port, __be16 node_port,
                                       __u8 protocol)
{
	key->remote_address = remote;
	key->node_address = NODE_ADDRESS;
	key->remote_port = remote_port; /* ICMP: 0, see icmp_ports */
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

	key_of(&of, entry->pod_address, entry->pod_port, key->remote_address, key->remote_port, key->protocol);
	c = connections.lookup(&of);
	/* Without a port it is just about to take one, maybe this. */
	return !c || c->expires < p->now || (c->nat_port && c->nat_port != key->node_port);
}

/* Rewrite the source of a packet that leaves, with the port that its connection holds, or a free one. */
static __always_inline bool masquerade(struct __sk_buff *skb, struct packet *p, struct connection *c)
{
	struct nat_entry mine = { .pod_address = p->source, .pod_port = p->source_port };
	struct nat_entry *entry;
	struct nat_key key;
	__u32 start = bpf_get_prandom_u32();

	if (p->protocol == IPPROTO_ICMP && p->icmp_type != ICMP_ECHO)
		return REFUSE(p, DROP_NAT_PROTOCOL);
	if (!c->nat_port) {
		for (__u32 i = 0; i < NAT_TRIES; i++) { /* bounded loops: kernel 5.3 */
			__be16 port = bpf_htons(NAT_PORT_MIN + (start + i * NAT_STEP) % NAT_PORTS);

			nat_key_of(&key, p->destination, p->destination_port, port, p->protocol);
			if (nat.insert(&key, &mine) == 0) {
				c->nat_port = port;
				break;
			}
		}
		if (!c->nat_port) { /* mappings stay until somebody needs their port: the last one tried may be over */
			entry = nat.lookup(&key);
			if (entry && is_abandoned(&key, entry, p) && nat.update(&key, &mine) == 0)
				c->nat_port = key.node_port;
		}
		if (!c->nat_port)
			return REFUSE(p, DROP_NO_NAT_MAPPING);
	} else {
		nat_key_of(&key, p->destination, p->destination_port, c->nat_port, p->protocol);
		entry = nat.lookup(&key);
		if (!entry) /* evicted: take it back if nobody has it */
			nat.insert(&key, &mine);
		else if (entry->pod_address != mine.pod_address || entry->pod_port != mine.pod_port)
			return REFUSE(p, DROP_NO_NAT_MAPPING);
	}
	return rewrite_source(skb, p, NODE_ADDRESS, c->nat_port);
}

/* A packet to the node: if it answers a masqueraded one, send it on to the pod. */
static __always_inline bool unmasquerade(struct __sk_buff *skb, struct packet *p)
{
	struct nat_entry *entry;
	struct nat_key key;
	__be16 port = p->destination_port;

	if (bpf_ntohs(port) < NAT_PORT_MIN || (p->protocol == IPPROTO_ICMP && p->icmp_type != ICMP_ECHOREPLY))
		return true;
	nat_key_of(&key, p->source, p->source_port, port, p->protocol);
	entry = nat.lookup(&key);
	if (!entry)
		return true;
	/* Without the connection that it belongs to this would begin one, from outside. */
	if (is_abandoned(&key, entry, p))
		return REFUSE(p, DROP_NO_NAT_MAPPING);
	return rewrite_destination(skb, p, entry->pod_address, entry->pod_port);
}

#endif
