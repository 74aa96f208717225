/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* ICMP and ARP on the wire. The C library's headers for these two need a whole socket interface with them. */
#ifndef PLEXUS_WIRE_H
#define PLEXUS_WIRE_H

/* RFC 792. `identifier` is that of an echo. */
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
