/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What Python and the kernel share: keys and values of maps, and events. layouts.py and events.py hold the same shapes; a
 * test compares every size and offset. Sized fields, named padding, __be for network byte order.
 *
 * A pinned map outlives the version that made it, so each has room for what is to come: fields that are called reserved,
 * and bits of flags that have no name, are 0 and are for who docs/map-layouts.md says. */
#ifndef PLEXUS_TYPES_H
#define PLEXUS_TYPES_H

/* An address of either family in one form: IPv6 as it is, IPv4 as ::ffff:a.b.c.d (RFC 4291, 2.5.5.2), so that one map and
 * one path serve both. parse.h refuses IPv6 packets that bear such an address. */
struct address {
	__be32 word[4]; /* IPv4: in the last one */
};

/* endpoints: the pods of this node, by each of their addresses. */
struct endpoint_key {
	struct address address;
};

#define ENDPOINT_ENFORCE_INGRESS 1u /* without it everything may come in */
#define ENDPOINT_ENFORCE_EGRESS 2u /* without it everything may leave */

struct endpoint {
	__u32 interface; /* index of the host side of its veth */
	__u32 identity; /* 5 (init) until it is known */
	__u32 policy; /* first part of the policy key; pods of one identity share it. 0 has no entries */
	__u32 flags; /* ENDPOINT_* */
	__u32 epoch; /* what was allowed before this one is judged again */
	__u32 reserved_staged; /* the policy that is only counted */
	__u8 mac[6]; /* the pod's */
	__u8 gateway_mac[6]; /* of the host side, which plays the gateway */
	__u32 reserved;
};

/* ipcache: who an address is and where it lives. Longest prefix; 0.0.0.0/0 and ::/0 are never stored: no entry is the
 * world. */
struct ipcache_key {
	__u32 prefix_bits; /* IPv4: 96 more than people write */
	struct address address;
};

#define IPCACHE_ROUTED 1u /* native routing: `node` is no neighbour on the device, the node's routes lead there */
#define IPCACHE_UNADVERTISED 2u /* this node has the address and no other knows: nobody comes for it by the tunnel */

struct ipcache_entry {
	__u32 identity;
	__u32 flags; /* IPCACHE_* */
	struct address node; /* where it lives, by which it is reached; 0: here, or outside the cluster */
};

/* masq_exclude: destinations that see pods' own addresses. */
struct masq_exclude_key {
	__u32 prefix_bits;
	struct address address;
};

/* policy: see policy.h. Longest prefix over all fields after prefix_bits. */
#define INGRESS 0
#define EGRESS 1

struct policy_key {
	__u32 prefix_bits; /* 72 + 0, 8 (protocol) or 9..24 (protocol and the first bits of the port) */
	__u32 policy;
	__u32 identity; /* of the peer, or its aggregate */
	__u8 direction;
	__u8 protocol;
	__be16 port; /* destination port; for ICMP the type + 1 */
};

#define POLICY_DENIES 1u
#define POLICY_NAMED 2u /* only where the pod that is called gives the port a name: see named_ports */

struct policy_entry {
	__u32 precedence; /* higher wins over longer */
	__u32 cookie; /* names the policies that this entry comes from */
	__be16 proxy_port; /* of layer 7; always 0 so far */
	__u8 flags; /* POLICY_* */
	__u8 l4_bits; /* prefix_bits - 72 */
};

/* named_ports: where an entry of policy that is POLICY_NAMED holds. Pods of one identity may give a name to different
 * numbers; a name is the port of that pod. */
struct named_port {
	__u32 policy; /* as in the entry's key */
	__u32 cookie; /* of the entry: it stands for the names as well */
	struct address address; /* of the pod that is called */
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

/* ct_tcp, ct_any: one entry for both directions of a connection. Low and high are the two ends ordered by address, then
 * port. */
struct connection_key {
	struct address low_address;
	struct address high_address;
	__be16 low_port; /* ICMP: see parse.h */
	__be16 high_port;
	__u8 protocol;
	__u8 pad[3];
};

#define CT_ORIGIN_LOW 0x01u /* the low end sent the first packet */
#define CT_REPLIED 0x02u /* the other end has answered */
#define CT_ORIGIN_FIN 0x04u /* the end that began has finished sending */
#define CT_REPLY_FIN 0x08u /* the other end has */
#define CT_RESET 0x10u
#define CT_TRANSLATED 0x20u /* replies bear service_address:service_port */
#define CT_MASQUERADED 0x40u /* leaves the node as its device's address:nat_port */
#define CT_BY_STACK 0x80u /* the stack has the origin's packets, so the replies too */
#define CT_BOTH_HERE 0x100u /* both ends are pods of this node, so either's policy may end it */
#define CT_AHEAD 0x200u /* judged by an identity that a tunnel told and this node's map did not have */
#define CT_RELAYED 0x2000u /* from outside by a Service to a backend elsewhere, as this node: back by it, too */

/* Where packets of one direction go next, which is also where those of the other direction come from. */
#define WAY_UNKNOWN 0
#define WAY_LOCAL 1 /* a pod of this node */
#define WAY_HOST 2 /* this node itself */
#define WAY_POD 3 /* a pod of another node, which is in `hop` */
#define WAY_OUT 4 /* another node itself, or outside the cluster: the node's routes decide */

/* What every packet reads comes first; what only counts comes last. */
struct connection {
	__u32 expires; /* tick after which the entry is as good as absent */
	__u32 epoch; /* as of this one it is allowed: see `is_judged` */
	__u32 flags; /* CT_* */
	__u8 way[2]; /* WAY_* of the replies, of the origin's packets: by `from_origin` */
	__u8 substitute; /* number of the port that stands for the origin's own; 0: none (substitute.h) */
	__u8 reserved;
	__be16 nat_port;
	__be16 service_port;
	__be16 reserved_proxy_port; /* of layer 7: where its packets are handed to */
	__u16 reserved_nat_source; /* which of the node's addresses nat_port is a port of */
	struct address hop; /* of the direction that is WAY_POD or WAY_OUT; or a device: address.h, set_device */
	struct address service_address;
	union {
		__u32 reserved_cookies[2]; /* by direction, of the policy entries that allow it */
		__u32 back; /* CT_RELAYED, which no policy here judges: the device that leads to who began, or 0 */
	};
	__u64 reserved_packets[2]; /* of the replies, of the origin */
	__u64 reserved_bytes[2];
};

/* nat: what comes back to a masqueraded port, and to whom it belongs. */
struct nat_key {
	struct address remote_address;
	struct address node_address;
	__be16 remote_port;
	__be16 node_port;
	__u8 protocol;
	__u8 pad[3];
};

#define NAT_RELAYED 1u /* belongs to a client outside, whom a Service has led to a backend elsewhere */

struct nat_entry {
	struct address pod_address;
	__be16 pod_port;
	__u16 flags; /* NAT_* */
};

/* devices: those of the node that lead to other nodes and to the outside, by index; at 0 what enters the tunnel. */
struct device {
	struct address address; /* IPv4, of what is masqueraded and leaves by it; none: the node's own */
	struct address address6;
	__u32 flags; /* DEVICE_* */
	__u32 pad;
};

#define DEVICE_HAS_PODS 1u /* native routing: pods of other nodes come by it */

/* l2_answers: addresses of Services for which this node answers (ARP, neighbour discovery) on one of its devices. */
struct l2_answer_key {
	__u32 device; /* index */
	struct address address;
};

struct l2_answer {
	__u64 until; /* CLOCK_BOOTTIME, ns: from then on another node may answer, so this one does not */
	__u8 mac[6]; /* the device's */
	__u8 pad[2];
};

/* fragments: what the first fragment of a datagram says of the others, which have no ports. */
struct fragment_key {
	struct address source;
	struct address destination;
	__be32 identification; /* IPv4: 16 bits of it */
	__u8 protocol;
	__u8 pad[3];
};

struct fragment {
	__be16 source_port;
	__be16 destination_port;
	__u8 icmp_type;
	__u8 icmp_kind; /* parse.h */
	__u8 protocol;
	__u8 pad;
};

/* services and backends. */
struct service_key {
	struct address address;
	__be16 port;
	__u8 protocol;
	__u8 reserved_scope; /* 0: whoever calls */
};

#define SERVICE_RANGES 0x02u /* source_ranges says who may call here from outside */
#define SERVICE_RANGES_DENY 0x04u /* or who may not */
#define SERVICE_LOCAL 0x08u /* only the backends of this node serve here, which `backends` counts */
#define SERVICE_NODE_PORT 0x40u /* at a node's address: the number is its Service's own frontend's */
#define SERVICE_HOST_PORT 0x80u /* at an address of one node: leads to one pod of it */
#define SERVICE_EXTERNAL 0x100u /* an external address, or a load balancer's: the same */
/* Who calls it may be outside of the cluster. */
#define SERVICE_FROM_OUTSIDE (SERVICE_NODE_PORT | SERVICE_HOST_PORT | SERVICE_EXTERNAL)

struct service {
	__u32 number;
	__u32 backends; /* how many; backends are numbered from 0. There may be more that do not serve at this address */
	__u32 flags; /* SERVICE_* */
	__u32 affinity; /* ticks for which a client comes to the same backend; 0: it need not */
	__u32 outside; /* how many of `backends`, the first ones, serve who calls from outside */
	__u32 reserved_terminating; /* how many slots after the last backend serve when there is no backend */
	__be16 reserved_proxy_port; /* of layer 7 */
	__u16 reserved[3];
};

/* choices: which backend a client's packets to a service go to, where the socket was not asked. One direction only:
 * it says nothing of what may pass. */
struct choice_key {
	struct address client;
	struct address service;
	__be16 client_port;
	__be16 service_port;
	__u8 protocol;
	__u8 pad[3];
};

struct choice {
	struct address address; /* of the backend */
	__be16 port;
	__u8 substitute; /* number of the port that stands for the client's own there; 0: none (substitute.h) */
	__u8 reserved_flags;
	__u32 reserved;
	__u32 epoch; /* as of this one the service had that backend */
};

struct backend_key {
	__u32 service;
	__u32 slot;
};

struct backend {
	struct address address;
	__be16 port;
	__u16 reserved_weight;
	__u16 reserved_flags;
	__u16 reserved_zone;
};

/* living: the backends that a service has now, in whatever slot; the value is 1. Who was sent to one may stay while it is
 * here. */
struct living_key {
	__u32 service;
	__be16 port;
	__u16 pad;
	struct address address;
};

/* affinity: where a client was sent last, for Services that want it to come back there. A client is an address; at the
 * socket, where that is not known yet, a network namespace. */
struct affinity_key {
	__u32 service;
	__u8 is_namespace; /* `client` is a namespace's cookie */
	__u8 is_local; /* by an address where only backends of this node serve */
	__u16 pad;
	struct address client;
};

struct affinity {
	struct address address; /* of the backend */
	__be16 port;
	__u16 pad;
	__u32 used; /* tick of the last time */
};

/* source_ranges: networks that may call a Service from outside, or may not. Longest prefix over all fields after
 * prefix_bits. */
struct range_key {
	__u32 prefix_bits; /* 32 more than an address's */
	__u32 service;
	struct address address;
};

#define RANGE_ALLOWED 1
#define RANGE_DENIED 2

/* sock_reverse: what a socket believes to be talking to. sock_choices: which backend the datagrams of a socket that is not
 * connected go to; its key holds the service instead, its value is a choice. */
struct sock_reverse_key {
	__u64 cookie;
	struct address address; /* backend */
	__be16 port;
	__u8 pad[6];
};

struct sock_reverse {
	struct address address; /* service */
	__be16 port;
	__u8 protocol; /* the socket's; 0: the entry is older than this field */
	__u8 is_datagram; /* made by sendmsg: nothing is connected by it */
};

/* node_state: the one thing that changes while programs run. A write of the maps that takes something away, or leads it
 * elsewhere, raises the epoch by one, and says what is to be judged again by leaving the new one there: in the entries of
 * the endpoints concerned, or here. */
#define SERVES_OUTSIDE 1u /* Services may be called from outside */
#define SERVES_ITSELF 2u /* and this host itself is a backend of one of those */

struct node_state {
	__u32 epoch;
	__u32 seed; /* made with the map */
	__u32 all; /* every connection */
	__u32 services; /* what was sent to a service, or might have been, and is not settled */
	__u32 ahead; /* connections that are CT_AHEAD */
	__u32 serves; /* SERVES_*: what few nodes have, and nobody looks for where it is not */
	__u32 reserved[2];
};

/* counters: by reason * 2 + direction, for each CPU. Reason 0 is "forwarded", those below 130 are no drops. */
struct counter {
	__u64 packets;
	__u64 bytes;
};

#define COUNTERS_MAX 512

/* event_rate: for each CPU, by event type. */
struct event_rate {
	__u64 window; /* coarse time >> EVENT_WINDOW_SHIFT */
	__u64 woken; /* coarse time >> EVENT_WAKE_SHIFT of the last wake-up */
	__u64 lost; /* events over the rate, or refused by a full buffer, since load */
	__u32 sent; /* in this window */
	__u32 pad;
};

#define EVENT_DROP 1
#define EVENT_TRACE 4 /* a connection has begun, and no policy was asked */
#define EVENT_POLICY_VERDICT 5 /* a policy has allowed a new connection */
#define EVENT_TYPES 8

struct event {
	__u64 at; /* CLOCK_MONOTONIC, coarse, ns */
	__u32 source_identity;
	__u32 destination_identity;
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 type; /* EVENT_* */
	__u8 reason; /* enum drop_reason, 0: forwarded */
	__u8 direction; /* INGRESS, EGRESS: of the policy that decided */
	__u32 policy; /* of the pod whose policy decided; 0: none */
	__u32 cookie; /* of the policy entry that decided; 0: none matched */
	__u32 length; /* bytes of the packet */
	__u16 line;
	__u8 file; /* enum source_file */
	__u8 pad;
};

#endif
