/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* May these two speak? Policy is looked up by identity, for the first packet of a connection and again after a change. */
#ifndef PLEXUS_POLICY_H
#define PLEXUS_POLICY_H

#undef THIS_FILE
#define THIS_FILE FILE_POLICY

#include "identities.h"

/* Entries for whole groups: one instead of thousands. Never the identity of anything. */
#define AGGREGATE_CLUSTER 11
#define AGGREGATE_WORLD 13
#define AGGREGATE_REMOTE_NODE 14

#define POLICY_KEY_BITS 96

static __always_inline bool is_worlds(__u32 identity)
{
	return identity == IDENTITY_WORLD || identity == IDENTITY_WORLD_IP4 || identity == IDENTITY_WORLD_IP6;
}

static __always_inline __u32 aggregate(__u32 identity)
{
	if (is_worlds(identity) || identity >= IDENTITY_LOCAL_MIN)
		return AGGREGATE_WORLD;
	if (identity == IDENTITY_REMOTE_NODE || identity == IDENTITY_KUBE_APISERVER)
		return AGGREGATE_REMOTE_NODE;
	return AGGREGATE_CLUSTER;
}

static __always_inline __u32 world(const struct address *address)
{
	if (!IPV4_ENABLED || !IPV6_ENABLED)
		return IDENTITY_WORLD;
	return is_ip4(address) ? IDENTITY_WORLD_IP4 : IDENTITY_WORLD_IP6;
}

static __always_inline struct ipcache_entry *who_is(const struct address *address)
{
	struct ipcache_key key = { .prefix_bits = 128, .address = *address };

	return ipcache.lookup(&key);
}

static __always_inline __u32 identity_of(const struct address *address, struct endpoint *local)
{
	struct ipcache_entry *entry;

	if (local)
		return local->identity;
	entry = who_is(address);
	return entry ? entry->identity : world(address);
}

/* The better of two entries: precedence, then the narrower port, then the specific identity. */
static __always_inline struct policy_entry *better(struct policy_entry *specific, struct policy_entry *group)
{
	if (!specific)
		return group;
	if (!group || specific->precedence > group->precedence)
		return specific;
	if (specific->precedence < group->precedence || specific->l4_bits < group->l4_bits)
		return group;
	return specific;
}

/* The entry, if it holds for the pod that is called. One for a named port is as good as absent at all others. */
static __always_inline struct policy_entry *holding(struct policy_entry *entry, const struct policy_key *key,
                                                    const struct address *called)
{
	struct named_port named = {};

	if (!entry || !(entry->flags & POLICY_NAMED))
		return entry;
	named.policy = key->policy;
	named.cookie = entry->cookie;
	named.address = *called;
	named.port = key->port;
	named.protocol = key->protocol;
	return named_ports.lookup(&named) ? entry : NULL;
}

/* One direction of one pod's policy. `called` and `port` are the destination of the connection's first packet. */
static __always_inline bool policy_allows(struct packet *p, __u32 pod_policy, __u8 direction, __u32 peer,
                                          const struct address *called, __u8 protocol, __be16 port)
{
	struct policy_key key = {
		.prefix_bits = POLICY_KEY_BITS,
		.policy = pod_policy,
		.identity = peer,
		.direction = direction,
		.protocol = protocol,
		.port = port,
	};
	struct policy_entry *specific, *entry;

	specific = holding(policy.lookup(&key), &key, called);
	key.identity = aggregate(peer);
	entry = better(specific, holding(policy.lookup(&key), &key, called));
	p->direction = direction;
	p->policy = pod_policy;
	p->cookie = 0;
	if (!entry)
		return REFUSE(p, DROP_POLICY);
	p->cookie = entry->cookie;
	if (entry->flags & POLICY_DENIES)
		return REFUSE(p, DROP_POLICY_DENY);
	return true;
}

#endif
