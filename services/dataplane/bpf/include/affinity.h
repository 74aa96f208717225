/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Session affinity: who was sent to a backend comes back to it, as long as the Service has it for new connections and the
 * client does not stay away for longer than the Service says. Asked once a connection, and only where a Service has it. */
#ifndef PLEXUS_AFFINITY_H
#define PLEXUS_AFFINITY_H

static __always_inline void ask_affinity(struct affinity_key *key, const struct service *service)
{
	key->service = service->number;
	key->is_local = !!(service->flags & SERVICE_LOCAL);
	key->pad = 0;
}

/* Where the client was sent before, if it may come there again; it is noted that it does. */
static __always_inline struct affinity *known_affinity(const struct service *service, const struct affinity_key *key,
                                                       __u32 now, struct living_key *backend)
{
	struct affinity *known = affinity.lookup(key);

	/* Another CPU may have used it a tick after this one has read the clock. */
	if (!known || (__s32)(now - known->used) > (__s32)service->affinity)
		return NULL;
	backend->service = service->number;
	backend->pad = 0;
	backend->port = known->port;
	backend->address = known->address;
	if (!living.lookup(backend))
		return NULL;
	if (known->used != now)
		known->used = now;
	return known;
}

static __always_inline void keep_affinity(const struct affinity_key *key, const struct address *address, __be16 port,
                                          __u32 now)
{
	struct affinity fresh = { .address = *address, .port = port, .used = now };

	affinity.update(key, &fresh);
}

#endif
