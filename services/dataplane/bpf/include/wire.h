/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* ICMP, ARP, neighbour discovery and IPv6 on the wire. The C library's headers for these need a whole socket interface. */
#ifndef PLEXUS_WIRE_H
#define PLEXUS_WIRE_H

/* RFC 792, RFC 4443. `identifier` is that of an echo. */
struct icmp {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be16 identifier;
	__be16 sequence;
};

#define ICMP_ECHOREPLY 0
#define ICMP_DEST_UNREACH 3
#define ICMP_SOURCE_QUENCH 4
#define ICMP_REDIRECT 5
#define ICMP_ECHO 8
#define ICMP_TIME_EXCEEDED 11
#define ICMP_PARAMETERPROB 12

#define ICMP6_DEST_UNREACH 1
#define ICMP6_ERROR_LAST 127 /* RFC 4443, 2.1: errors have the types below 128 */
#define ICMP6_ECHO 128
#define ICMP6_ECHOREPLY 129
#define ICMP6_LISTENER_QUERY 130 /* RFC 2710; 131 and 132 are its answers */
#define ICMP6_NEIGHBOUR_SOLICITATION 135
#define ICMP6_NEIGHBOUR_ADVERTISEMENT 136
#define ICMP6_REDIRECT 137
#define ICMP6_LISTENER_REPORT 143 /* RFC 3810 */

/* RFC 8200. */
struct ip6 {
	__be32 version_class_flow;
	__be16 payload_bytes;
	__u8 next;
	__u8 hop_limit;
	__be32 source[4];
	__be32 destination[4];
};

#define IP6_VERSION(ip) (bpf_ntohl((ip)->version_class_flow) >> 28)

/* What hop-by-hop, destination options and routing headers begin with. */
struct ip6_extension {
	__u8 next;
	__u8 more; /* further units of 8 bytes */
};

struct ip6_fragment {
	__u8 next;
	__u8 reserved;
	__be16 offset; /* in 8 bytes, << 3; the last bit: more follow */
	__be32 identification;
};

#define IP6_HOP_BY_HOP 0
#define IP6_ROUTING 43
#define IP6_FRAGMENT 44
#define IP6_OPTIONS 60
#define IPPROTO_ICMP6 58

/* A neighbour solicitation or advertisement with one option, the sender's or target's link address. RFC 4861, 4.3, 4.4. */
struct neighbour {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be32 flags; /* of an advertisement */
	__be32 target[4];
	__u8 option;
	__u8 option_units; /* of 8 bytes */
	__u8 mac[6];
} __attribute__((packed));

#define NEIGHBOUR_HOP_LIMIT 255 /* what was routed has less */
#define NEIGHBOUR_SOLICITED_OVERRIDE 0x60000000 /* the flags S and O */
#define NEIGHBOUR_OVERRIDE 0x20000000
#define OPTION_TARGET_MAC 2

/* RFC 826, for IPv4 over Ethernet. */
struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_bytes;
	__u8 protocol_bytes;
	__be16 operation;
	__u8 sender_mac[6];
	__be32 sender;
	__u8 target_mac[6];
	__be32 target;
} __attribute__((packed));

#define ARP_ETHERNET 1
#define ARP_REQUEST 1
#define ARP_REPLY 2

#endif
