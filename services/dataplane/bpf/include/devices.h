/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The node's devices: which they are, what comes by them, and the address of what leaves by them. */
#ifndef PLEXUS_DEVICES_H
#define PLEXUS_DEVICES_H

/* One of the node's own that lead to other nodes and to the outside. */
static __always_inline bool leads_out(__u32 device)
{
	return device == DEVICE_INDEX || devices.lookup(&device);
}

/* May a pod of another node come by this device, where there is no tunnel? */
static __always_inline bool has_pods(__u32 device)
{
	struct device *found = devices.lookup(&device);

	return found && found->flags & DEVICE_HAS_PODS;
}

/* The address that packets get which leave by `p->device`: its own; the node's, where it has none of the family. Of the
 * device that has the node's address nothing is looked up. */
static __always_inline void find_leaves_as(struct packet *p)
{
	struct address *own = NULL;
	struct device *device;

	set_node(&p->leaves_as, p->is_ip6);
	if (p->device == DEVICE_INDEX)
		return;
	device = devices.lookup(&p->device);
	if (device)
		own = p->is_ip6 ? &device->address6 : &device->address;
	if (own && !is_none(own))
		p->leaves_as = *own;
}

#endif
