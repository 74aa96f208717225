/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Who sends what comes by one of the node's own devices. */
#ifndef PLEXUS_SENDER_H
#define PLEXUS_SENDER_H

#undef THIS_FILE
#define THIS_FILE FILE_SENDER

/* Nobody out there is this node or has an address of its blocks; with a tunnel, pods come through it, not here; and
 * without, by a device that leads to some: who is on another uplink's network is none of them. */
static __always_inline bool identify(struct packet *p, struct way *came)
{
	struct ipcache_entry *sender = who_is(&p->source);
	bool is_pod = sender && !is_none(&sender->node);

	p->source_identity = sender ? sender->identity : world(&p->source);
	if (p->source_identity == IDENTITY_HOST || endpoint_at(&p->source))
		return REFUSE(p, DROP_INVALID_SOURCE);
	if (is_pod && (TUNNEL_INDEX || is_node(&sender->node) || !has_pods(p->device)))
		return REFUSE(p, DROP_INVALID_SOURCE);
	came->to = is_pod ? WAY_POD : WAY_OUT;
	if (is_pod && !(sender->flags & IPCACHE_ROUTED))
		came->hop = sender->node;
	else if (is_pod && LEGACY_ROUTING) /* the stack sends: nobody else asks for the device */
		set_device(&came->hop, p->device);
	return true;
}

static __always_inline bool is_way_back(struct packet *p, __u8 way, struct address *hop)
{
	if (way != WAY_POD || TUNNEL_INDEX)
		return way == WAY_OUT;
	return p->device == (is_device(hop) ? hop->word[3] : DEVICE_INDEX);
}

#endif
