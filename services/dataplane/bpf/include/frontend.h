/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The Service that is called at an address and port. */
#ifndef PLEXUS_FRONTEND_H
#define PLEXUS_FRONTEND_H

#include "identities.h"

static __always_inline bool is_node_port(__be16 port)
{
	return bpf_ntohs(port) >= NODE_PORT_MIN && bpf_ntohs(port) <= NODE_PORT_MAX;
}

/* By the address itself; else, where that is a node's, this one's or another's, by the node port, which stands in
 * `services` once, at the family's address of nobody: a node's address that comes or goes changes nothing there. */
static __always_inline struct service *service_at(const struct service_key *called)
{
	struct service *found = services.lookup(called);
	struct ipcache_key who = { .prefix_bits = 128, .address = called->address };
	struct service_key at_nodes = { .port = called->port, .protocol = called->protocol };
	struct ipcache_entry *node;

	if (found || !is_node_port(called->port))
		return found;
	node = ipcache.lookup(&who);
	if (!node || (node->identity != IDENTITY_HOST && node->identity != IDENTITY_REMOTE_NODE))
		return NULL;
	if (is_ip4(&called->address))
		set_ip4(&at_nodes.address, 0);
	return services.lookup(&at_nodes);
}

/* Whether who calls from outside is to be led to a backend of `*found`. A node port, or a pod's host port, is one of this
 * node's own addresses: what goes to another node passes by. */
static __always_inline bool is_exposed(const struct service_key *called, bool is_own, struct service *found)
{
	struct service *service = service_at(called);

	if (!service || !(service->flags & SERVICE_FROM_OUTSIDE) ||
	    (service->flags & (SERVICE_NODE_PORT | SERVICE_HOST_PORT) && !is_own))
		return false;
	*found = *service;
	return true;
}

#endif
