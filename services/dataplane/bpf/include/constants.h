/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Constants: what differs from node to node, and switches. Programs are compiled once, without them, and the loader puts
 * each number into the instructions just before it loads them (load/objects.py). So the verifier knows the number, and
 * cuts what it leads to nowhere; a packet pays nothing but the load of a register.
 *
 * A constant is a number here, and a name that load/loader.py gives a value. Nothing else lists it: limits.py reads this
 * file. Each is 64 bits wide and below 2^32, so that comparing it with a 32-bit field takes no instruction more. */
#ifndef PLEXUS_CONSTANTS_H
#define PLEXUS_CONSTANTS_H

#define CONSTANT_MARK \
	0x5eed000000000000 /* what an instruction loads whose number is yet to come; no address is like it */

/* In assembly, because the compiler leaves that as it is. Not volatile: it may do it once for several uses, or nowhere. */
#define CONSTANT(number)                                                          \
	({                                                                        \
		__u64 value_;                                                     \
		asm("%0 = %1 ll" : "=r"(value_) : "i"(CONSTANT_MARK | (number))); \
		value_;                                                           \
	})

/* The node's addresses in network byte order, IPv6 in four words; 0 where it has none of the family. */
#define NODE_ADDRESS CONSTANT(1)
#define NODE_ADDRESS6_0 CONSTANT(2)
#define NODE_ADDRESS6_1 CONSTANT(3)
#define NODE_ADDRESS6_2 CONSTANT(4)
#define NODE_ADDRESS6_3 CONSTANT(5)

/* The range of ClusterIPs; a mask of 0: not known. */
#define SERVICES4 CONSTANT(6)
#define SERVICES4_MASK CONSTANT(7)
#define SERVICES6_0 CONSTANT(8)
#define SERVICES6_1 CONSTANT(9)
#define SERVICES6_2 CONSTANT(10)
#define SERVICES6_3 CONSTANT(11)
#define SERVICES6_MASK_0 CONSTANT(12)
#define SERVICES6_MASK_1 CONSTANT(13)
#define SERVICES6_MASK_2 CONSTANT(14)
#define SERVICES6_MASK_3 CONSTANT(15)

#define DEVICE_INDEX CONSTANT(16) /* the device that has the node's own address; `devices` has all */
#define TUNNEL_INDEX CONSTANT(17) /* the VXLAN or Geneve device; 0: native routing */
#define TUNNEL_PORT CONSTANT(18) /* UDP, of the tunnel's outer packets, in network byte order */
#define UNDERLAY_IP6 CONSTANT(19) /* the tunnel's outer packets are IPv6 */

#define LEGACY_ROUTING CONSTANT(20) /* the node's own stack forwards what the programs have judged: docs/adr/0017 */
#define REJECT CONSTANT(21) /* who calls a Service in vain is told; 0: dropped in silence */
#define OBSERVED CONSTANT(40) /* somebody reads events of packets; 0: they are counted alone */
#define SET_RETVAL CONSTANT(22) /* bpf_set_retval is there for connect() and sendmsg() (kernel 6.0) */
#define MASQUERADE4 CONSTANT(23) /* pods leave the cluster with the node's address */
#define MASQUERADE6 CONSTANT(24)

/* Masqueraded connections take their port here, where Linux gives none to the node's own connections, so the two do not
 * meet (docs/adr/0006). */
#define NAT_PORT_MIN CONSTANT(25)
#define NAT_PORT_MAX CONSTANT(26)
#define NAT_PORTS CONSTANT(27) /* how many */

/* Ports that Services have at every node; below those of masqueraded connections. */
#define NODE_PORT_MIN CONSTANT(34)
#define NODE_PORT_MAX CONSTANT(35)

#define ANNOUNCES CONSTANT(36) /* the node answers for addresses of Services on its devices' networks (l2_answers) */

/* Cookie of the node's own network namespace, where the sockets of no other are led to backends; 0: all are. */
#define HOOKED_NAMESPACE CONSTANT(37)

/* Lifetimes of connections, in ticks (limits.h). */
#define CT_TCP_TICKS CONSTANT(28)
#define CT_TCP_SYN_TICKS CONSTANT(29) /* nobody has answered yet */
#define CT_TCP_FIN_TICKS CONSTANT(30) /* both ends have finished, or one was reset */
#define CT_ANY_TICKS CONSTANT(31)
#define CT_LONGEST_TICKS CONSTANT(33) /* what expires later than this no program has made: it is as good as absent */
#define TIME_WAIT_TICKS CONSTANT(32) /* how long the far end remembers a connection when its entry here is over */

#endif
