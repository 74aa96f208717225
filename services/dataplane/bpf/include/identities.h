/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Identities that no label set has (bus/labels.py), and where those of label sets are. */
#ifndef PLEXUS_IDENTITIES_H
#define PLEXUS_IDENTITIES_H

#define IDENTITY_HOST 1
#define IDENTITY_WORLD 2
#define IDENTITY_REMOTE_NODE 6
#define IDENTITY_KUBE_APISERVER 7
#define IDENTITY_WORLD_IP4 9 /* the world, where the node has both families */
#define IDENTITY_WORLD_IP6 10
#define IDENTITY_CLUSTER_MIN 256
#define IDENTITY_LOCAL_MIN (1u << 24) /* CIDR identities of this node: parts of the world */

#endif
