/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Sizes, times and switches. Each has its unit and what changing it costs.
 *
 * Whatever the node's configuration decides arrives as -D from loader.py; a default here is for reading and for tests.
 */
#ifndef PLEXUS_LIMITS_H
#define PLEXUS_LIMITS_H

#ifndef PIN_DIR
#define PIN_DIR "/sys/fs/bpf/plexus" /* one directory a node; maps are PIN_DIR/maps/<name> */
#endif

#ifndef GENERATION
#define GENERATION "0" /* of programs, which have some maps of their own: steps.h */
#endif

/* Entries. Memory is taken when the map is made for the LRU maps, as it fills for the others. */
#ifndef CT_TCP_MAX
#define CT_TCP_MAX 524288 /* a full map evicts the connection used longest ago */
#endif
#ifndef CT_ANY_MAX
#define CT_ANY_MAX 262144
#endif
#ifndef NAT_MAX
#define NAT_MAX 524288
#endif
#ifndef SOCK_REVERSE_MAX
#define SOCK_REVERSE_MAX 262144
#endif
#ifndef CHOICES_MAX
#define CHOICES_MAX 65536 /* connections to services that the socket hooks did not see; the oldest is evicted */
#endif
#ifndef SOCK_CHOICES_MAX
#define SOCK_CHOICES_MAX 65536 /* pairs of an unconnected UDP socket and a service; the oldest is evicted */
#endif
#ifndef FRAGMENTS_MAX
#define FRAGMENTS_MAX 8192 /* datagrams in fragments at a time */
#endif
#ifndef ENDPOINTS_MAX
#define ENDPOINTS_MAX 65536
#endif
#ifndef IPCACHE_MAX
#define IPCACHE_MAX 512000
#endif
#ifndef POLICY_MAX
#define POLICY_MAX 1048576 /* over all pods of the node; parts/policy/entries.py keeps it to 16384 an identity */
#endif
#ifndef NAMED_PORTS_MAX
#define NAMED_PORTS_MAX 65536 /* addresses that have a port which a policy of this node names */
#endif
#ifndef SERVICES_MAX
#define SERVICES_MAX 65536
#endif
#ifndef BACKENDS_MAX
#define BACKENDS_MAX 262144
#endif
#ifndef MASQ_EXCLUDE_MAX
#define MASQ_EXCLUDE_MAX 16384
#endif
#define EVENTS_BYTES (1 << 20) /* a power of two; 1 MiB holds about 11000 events */

/* The node. Addresses are in network byte order; 0 where the node has none of the family. */
#ifndef IPV4_ENABLED
#define IPV4_ENABLED 1
#endif
#ifndef IPV6_ENABLED
#define IPV6_ENABLED 1
#endif
#ifndef NODE_ADDRESS
#define NODE_ADDRESS 0
#endif
#ifndef NODE_ADDRESS6_0 /* the four words of it */
#define NODE_ADDRESS6_0 0
#define NODE_ADDRESS6_1 0
#define NODE_ADDRESS6_2 0
#define NODE_ADDRESS6_3 0
#endif
#ifndef SERVICES4_MASK /* the range of ClusterIPs; a mask of 0: not known */
#define SERVICES4 0
#define SERVICES4_MASK 0
#endif
#ifndef SERVICES6_MASK_0
#define SERVICES6_0 0
#define SERVICES6_1 0
#define SERVICES6_2 0
#define SERVICES6_3 0
#define SERVICES6_MASK_0 0
#define SERVICES6_MASK_1 0
#define SERVICES6_MASK_2 0
#define SERVICES6_MASK_3 0
#endif
#ifndef REJECT
#define REJECT 1 /* who sends to no Service of the range, or to one without backends, is told; 0: dropped in silence */
#endif
#ifndef SET_RETVAL
#define SET_RETVAL 1 /* bpf_set_retval is there for connect() and sendmsg() (kernel 6.0); load/compiler.py asks */
#endif
#ifndef DEVICE_INDEX
#define DEVICE_INDEX 0 /* the device that leads to the other nodes and to the outside */
#endif
#ifndef TUNNEL_INDEX
#define TUNNEL_INDEX 0 /* the VXLAN or Geneve device; 0: native routing */
#endif
#ifndef TUNNEL_PORT
#define TUNNEL_PORT 8472 /* UDP, of the tunnel's outer packets */
#endif
#ifndef UNDERLAY_IP6
#define UNDERLAY_IP6 0 /* the tunnel's outer packets are IPv6 */
#endif
#ifndef LEGACY_ROUTING
#define LEGACY_ROUTING 0 /* the node's own stack forwards what the programs have judged: docs/adr/0017 */
#endif
#ifndef MASQUERADE4
#define MASQUERADE4 1 /* pods leave the cluster with the node's address */
#endif
#ifndef MASQUERADE6
#define MASQUERADE6 1
#endif

/* Masqueraded connections take their port here, where Linux gives none to the node's own connections, so the two do not
 * meet (docs/adr/0006); the dataplane says what the range is. */
#ifndef NAT_PORT_MIN
#define NAT_PORT_MIN 36864
#endif
#ifndef NAT_PORT_MAX
#define NAT_PORT_MAX 65535
#endif
#define NAT_TRIES 16 /* ports that are tried before a connection is dropped; each costs the verifier, too */

/* Time is counted in ticks of 2^30 ns (1.07 s): a shift instead of a division for every packet. */
#define TICK_SHIFT 30
#define SECONDS(s) ((__u32)(((__u64)(s) * 1000000000ull) >> TICK_SHIFT) + 1)
#ifndef CT_TCP_SECONDS
#define CT_TCP_SECONDS 8000
#endif
#ifndef CT_TCP_SYN_SECONDS
#define CT_TCP_SYN_SECONDS 60 /* nobody has answered yet */
#endif
#ifndef CT_TCP_FIN_SECONDS
#define CT_TCP_FIN_SECONDS 10 /* both ends have finished, or one was reset */
#endif
/* What expires later than this no program has made, whatever the settings are or were: it is as good as absent, as what has
 * expired (keep/sweep.py says the same). */
#define CT_WEEK_SECONDS 604800
#define CT_LONGER(one, other) ((one) > (other) ? (one) : (other))
#define CT_LONGEST_SECONDS                                       \
	CT_LONGER(CT_LONGER(CT_TCP_SECONDS, CT_TCP_SYN_SECONDS), \
	          CT_LONGER(CT_LONGER(CT_TCP_FIN_SECONDS, CT_ANY_SECONDS), CT_WEEK_SECONDS))
#define TIME_WAIT_SECONDS 60 /* how long Linux remembers a connection that it has closed */
#ifndef CT_ANY_SECONDS
#define CT_ANY_SECONDS 60
#endif
/* What expires later than this no program has made, whatever the settings are or were: it is as good as absent, as what has
 * expired (keep/sweep.py says the same). */
#define CT_WEEK_SECONDS 604800
#define CT_LONGER(one, other) ((one) > (other) ? (one) : (other))
#define CT_LONGEST_SECONDS                                       \
	CT_LONGER(CT_LONGER(CT_TCP_SECONDS, CT_TCP_SYN_SECONDS), \
	          CT_LONGER(CT_LONGER(CT_TCP_FIN_SECONDS, CT_ANY_SECONDS), CT_WEEK_SECONDS))

/* Events: at most this many of a type for each CPU and window; what is over is counted as lost. */
#define EVENT_WINDOW_SHIFT 27 /* 134 ms */
#define EVENTS_PER_WINDOW 128
#define EVENT_WAKE_SHIFT 26 /* the reader is woken at most every 67 ms by each CPU, never once an event */

#endif
