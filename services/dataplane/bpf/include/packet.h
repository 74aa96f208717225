/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The packet in hand: what every step of a program reads, and where it leaves its verdict. */
#ifndef PLEXUS_PACKET_H
#define PLEXUS_PACKET_H

/* What an ICMP message is to us, in either family. */
#define ICMP_IS_NONE 0 /* not ICMP, or a message that stands for itself */
#define ICMP_IS_ECHO 1
#define ICMP_IS_REPLY 2
#define ICMP_IS_ERROR 3 /* quotes the packet that caused it: parse.h */
#define ICMP_IS_LINK 4  /* neighbour discovery, multicast listeners: never leaves its link */

/* Where an ICMP error was met, and so what is to be done about it (icmp_error.bpf.c). */
#define ERROR_OF_POD 1 /* a pod of this node complains */
#define ERROR_OF_STACK 2 /* this node's own stack tells a pod, or something that it has routed */
#define ERROR_FOR_POD 3 /* another node, or somebody outside, tells a pod */
#define ERROR_FOR_NODE 4 /* somebody outside tells the node, or a pod that is masqueraded */
#define ERROR_ROUTED 5 /* the stack has routed a pod's out: with LEGACY_ROUTING */
#define ERROR_OF_HOST 6 /* the node complains to somebody outside, maybe as a backend */

#define FRAGMENT_NONE 0
#define FRAGMENT_FIRST 1
#define FRAGMENT_LATER 2 /* has no ports of its own: fragment.h */
#define FRAGMENT_KEPT 3  /* the first, and its ports are remembered */

/* What was done to a packet that goes to a service. */
struct translation {
	struct address address; /* the service's */
	__be16 port; /* 0: it goes to none */
	bool is_new; /* `choice` is to be kept once the packet is admitted */
	bool to_itself; /* the service has led the pod to itself */
	__u8 free; /* a substitute that was found, by number */
	bool is_found;
	struct choice_key key;
	struct choice choice;
	struct affinity_key client;
	struct living_key lives;
};

/* What is known of the packet in hand, and what was decided about it. */
struct packet {
	struct address source;
	struct address destination;
	__u32 l4; /* offset of the transport header */
	__u32 quoted_l4; /* the same of a packet that an ICMP error quotes */
	__be16 source_port; /* ICMP: the identifier at the end that asks; see `icmp_ports` */
	__be16 destination_port;
	__u8 protocol;
	__u8 is_ip6;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_kind; /* ICMP_IS_* */
	__u8 fragment; /* FRAGMENT_* */
	__u8 direction;
	__u8 reason; /* enum drop_reason */
	__u8 file;
	__u8 vouched; /* its sender is who it says: a pod of this node, the node itself, what a node sends by the tunnel */
	__u8 begins_anew; /* it begins a connection where an entry of its ends is alive: `find` gives none */
	__u8 for_pod; /* it answers what was masqueraded: its destination is the pod's address now */
	__u8 for_client; /* the same of a client outside, whom a Service has led to a backend elsewhere */
	__u8 told_as; /* EVENT_*: it begins a connection, which is worth an event; 0: it does not */
	__u8 error; /* ERROR_* */
	__u8 by_stack; /* the node's stack takes it on from here to the pod, by to_pod */
	__u8 is_known; /* its sender may be who it says; else nothing of it is for a pod */
	__u8 is_ahead; /* source_identity is what a tunnel told, and the map has another */
	__u8 comes_back; /* its Service wants its client back at the same backend: STEP_COME_BACK finds that */
	__u16 line;
	__u16 bytes; /* of the IP packet, as its header says */
	__u32 identification; /* of the fragmented datagram */
	__u32 policy; /* that decided, and the entry's cookie */
	__u32 cookie;
	__u32 source_identity; /* 0: not needed so far */
	__u32 destination_identity;
	__u32 device; /* of the node, by index: the one that it came by, or leaves by once its way is known */
	/* From here on nothing is cleared for each packet. The clock, and the node's state, as read before any policy, so that a
	 * change in between is noticed at the next packet: `read_clock`. */
	__u64 time; /* coarse ns */
	struct node_state state;
	__u32 now; /* tick */
	__u32 tunnel_identity; /* from the tunnel, which the overlay program fills */
	struct address tunnel_from; /* the node that sent it */
	/* What a search for a masquerade port has in hand (nat.h): here for the verifier, as all of this. */
	struct nat_key mapping;
	struct address leaves_as; /* the address that it gets */
	struct connection_key holder;
	struct bpf_sock_tuple asked;
	__u32 nat_first; /* the range */
	__u32 nat_ports;
	__u32 nat_taken; /* ports that others were found to hold */
	struct service frontend; /* that it calls, where a step goes on with that */
	struct translation called; /* the same for services; begun anew where it is asked for */
};

/* Refuse the packet: the reason, and where it was decided, go into the counter and the event. */
#define REFUSE(p, why)                 \
	({                             \
		(p)->reason = (why);   \
		(p)->file = THIS_FILE; \
		(p)->line = __LINE__;  \
		false;                 \
	})

#define DROP(p, why)            \
	({                      \
		REFUSE(p, why); \
		TC_ACT_SHOT;    \
	})

#endif
