/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Sizes, times and features. Each has its unit and what changing it costs.
 *
 * How large a map is, and how long a connection lives, the node's settings decide when programs are loaded: a number here
 * is what they say of themselves. What programs are compiled for arrives as -D (load/sets.py). Numbers that differ from
 * node to node are in constants.h.
 */
#ifndef PLEXUS_LIMITS_H
#define PLEXUS_LIMITS_H

/* Features: each combination of them is compiled by itself. */
#ifndef IPV4_ENABLED
#define IPV4_ENABLED 1
#endif
#ifndef IPV6_ENABLED
#define IPV6_ENABLED 1
#endif

/* Entries. Memory is taken when the map is made for the LRU maps, as it fills for the others. */
#define CT_TCP_MAX 524288 /* a full map evicts the connection used longest ago */
#define CT_ANY_MAX 262144
#define NAT_MAX 524288
#define SOCK_REVERSE_MAX 262144
#define CHOICES_MAX 65536 /* connections to services that the socket hooks did not see; the oldest is evicted */
#define SOCK_CHOICES_MAX 65536 /* pairs of an unconnected UDP socket and a service; the oldest is evicted */
#define AFFINITY_MAX 65536 /* pairs of a client and a service that wants it to come back; the oldest is evicted */
#define FRAGMENTS_MAX 8192 /* datagrams in fragments at a time */
#define ENDPOINTS_MAX 65536
#define IPCACHE_MAX 512000
#define POLICY_MAX 1048576 /* over all pods of the node; parts/policy/entries.py keeps it to 16384 an identity */
#define NAMED_PORTS_MAX 65536 /* addresses that have a port which a policy of this node names */
#define SERVICES_MAX 65536
#define BACKENDS_MAX 262144
#define SOURCE_RANGES_MAX 65536 /* networks that a Service lets in from outside, or does not */
#define MASQ_EXCLUDE_MAX 16384
#define DEVICES_MAX 256 /* of the node's own, that lead to other nodes and to the outside */
#define L2_ANSWERS_MAX 65536 /* addresses that the node answers for, once for each device */
#define EVENTS_BYTES (1 << 20) /* a power of two; 1 MiB holds about 11000 events */

#define NAT_TRIES 16 /* ports that are tried before a connection is dropped; each costs the verifier, too */

/* Time is counted in ticks of 2^30 ns (1.07 s): a shift instead of a division for every packet. Programs
 * have lifetimes in ticks (constants.h); these are in seconds. */
#define TICK_SHIFT 30
#define CT_TCP_SECONDS 8000
#define CT_TCP_SYN_SECONDS 60 /* nobody has answered yet */
#define CT_TCP_FIN_SECONDS 10 /* both ends have finished, or one was reset */
/* What expires later than this no program has made, whatever the settings are or were: it is as good as absent, as what has
 * expired (keep/sweep.py says the same). */
#define CT_WEEK_SECONDS 604800
#define TIME_WAIT_SECONDS 60 /* how long Linux remembers a connection that it has closed */
#define CT_ANY_SECONDS 60

/* Events: at most this many of a type for each CPU and window; what is over is counted as lost. */
#define EVENT_WINDOW_SHIFT 27 /* 134 ms */
#define EVENTS_PER_WINDOW 128 /* of drops, which anybody can cause as fast as packets come */
#define STARTS_PER_WINDOW 4096 /* of connections: each has cost a look-up of its way, and an entry, too */
#define EVENT_WAKE_SHIFT 26 /* the reader is woken at most every 67 ms by each CPU, never once an event */

#endif
