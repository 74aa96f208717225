/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Services for what the socket hooks did not see: the destination becomes a backend, replies bear the service again. */
#ifndef PLEXUS_SERVICE_H
#define PLEXUS_SERVICE_H

#undef THIS_FILE
#define THIS_FILE FILE_SERVICE

static __always_inline struct service *service_at(__be32 address, __be16 port, __u8 protocol)
{
	struct service_key key = { .address = address, .port = port, .protocol = protocol };

	return services.lookup(&key);
}

static __always_inline struct backend *any_backend(struct service *service)
{
	struct backend_key key = { .service = service->number };

	if (!service->backends)
		return NULL;
	key.slot = bpf_get_prandom_u32() % service->backends;
	return backends.lookup(&key);
}

/* If the packet goes to a service, send it to the backend that its connection has, or to one chosen now.
 *
 * `f` was found for the packet as it is; afterwards it is found for the packet as rewritten. The service's address
 * is left in `*address` (0: not a service). */
static __always_inline bool balance(struct __sk_buff *skb, struct packet *p, struct flow *f, __be32 *address,
                                    __be16 *port)
{
	struct connection choice = {};
	struct service *service;
	struct backend *backend;
	__be32 to;
	__be16 to_port;

	if (f->connection && f->connection->flags & CT_CHOICE && f->connection->epoch == p->epoch) {
		to = f->connection->service_address;
		to_port = f->connection->service_port;
		touch(f, p);
	} else {
		if (p->protocol == IPPROTO_ICMP)
			return true;
		service = service_at(p->destination, p->destination_port, p->protocol);
		if (!service) {
			if (f->connection) { /* a choice for a service that is gone */
				connections.delete(&f->key);
				f->connection = NULL;
				f->from_origin = true;
			}
			return true;
		}
		if (f->connection) { /* chosen before the last change: the connection stays where it is */
			to = f->connection->service_address;
			to_port = f->connection->service_port;
			f->connection->epoch = p->epoch;
			touch(f, p);
		} else {
			backend = any_backend(service);
			if (!backend) /* or the host's stack would answer for it */
				return REFUSE(p, DROP_NO_BACKEND);
			to = backend->address;
			to_port = backend->port;
			choice.flags = CT_CHOICE | (f->source_is_low ? CT_ORIGIN_LOW : 0);
			choice.epoch = p->epoch;
			choice.service_address = to;
			choice.service_port = to_port;
			choice.expires = p->now + lifetime(p->protocol, choice.flags);
			if (connections.update(&f->key, &choice))
				return REFUSE(p, DROP_CT_INSERT);
		}
	}
	*address = p->destination;
	*port = p->destination_port;
	if (!rewrite_destination(skb, p, to, to_port))
		return false;
	find(f, p);
	return true;
}

#endif
