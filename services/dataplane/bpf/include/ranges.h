/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Who may call a Service from outside (loadBalancerSourceRanges). Asked of every packet, and only where a Service has
 * ranges: so a change holds for connections that are there already, and for nobody else. */
#ifndef PLEXUS_RANGES_H
#define PLEXUS_RANGES_H

/* The value says whether it was written to let in or to keep out: while a Service goes from the one to the other, none that
 * was kept out gets in. */
static __always_inline bool may_call(const struct service *service, const struct address *client)
{
	struct range_key key = { .prefix_bits = 32 + 128, .service = service->number, .address = *client };
	__u8 *found;

	if (!(service->flags & SERVICE_RANGES))
		return true;
	found = source_ranges.lookup(&key);
	return service->flags & SERVICE_RANGES_DENY ? !found || *found != RANGE_DENIED
	                                            : found && *found == RANGE_ALLOWED;
}

#endif
