/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Every reason to drop a packet. Numbers and names are the public ones (flow API); they never change meaning.
 * shapes/reasons.py is read from this file. */
#ifndef PLEXUS_REASONS_H
#define PLEXUS_REASONS_H

enum drop_reason {
	FORWARDED = 0,
	NOTE_NAT_PORT_TAKEN = 100,        /* NAT port was taken, another tried: ours, no public number */
	DROP_INVALID_SOURCE = 132,        /* Invalid source ip */
	DROP_POLICY = 133,                /* Policy denied */
	DROP_INVALID = 134,               /* Invalid packet dropped */
	DROP_UNKNOWN_L4 = 137,            /* CT: Unknown L4 protocol */
	DROP_UNSUPPORTED_L3 = 139,        /* Unsupported L3 protocol */
	DROP_MISSED_TAIL_CALL = 140,      /* Missed tail call */
	DROP_WRITE_ERROR = 141,           /* Error writing to packet */
	DROP_NO_TUNNEL_KEY = 147,         /* Error retrieving tunnel key */
	DROP_UNKNOWN_L3_TARGET = 150,     /* Unknown L3 target address */
	DROP_UNROUTABLE = 151,            /* Stale or unroutable IP */
	DROP_CT_INSERT = 155,             /* CT: Map insertion failed */
	DROP_EXTENSION_HEADER = 156,      /* Invalid IPv6 extension header */
	DROP_NO_BACKEND = 158,            /* Service backend not found */
	DROP_UNKNOWN_CT = 163,            /* Unknown connection tracking state */
	DROP_NO_NAT_MAPPING = 167,        /* No mapping for NAT masquerade */
	DROP_NAT_PROTOCOL = 168,      /* Unsupported protocol for NAT masquerade */
	DROP_FIB = 169,                   /* FIB lookup failed */
	DROP_ENCAP_PROHIBITED = 170,  /* Encapsulation traffic is prohibited */
	DROP_FRAGMENT_NOT_FOUND = 175,    /* First logical datagram fragment not found */
	DROP_FORBIDDEN_ICMP6 = 176,       /* Forbidden ICMPv6 message */
	DROP_SOURCE_RANGE = 177,          /* Denied by LB src range check */
	DROP_POLICY_DENY = 181,           /* Policy denied by denylist */
	DROP_VLAN = 182,                  /* VLAN traffic disallowed by VLAN filter */
	DROP_TTL = 196,                   /* TTL exceeded */
};

/* Which file a drop was decided in; shapes/reasons.py has the names. */
enum source_file {
	FILE_POD = 1,      /* pod.bpf.c */
	FILE_NETDEV = 2,   /* netdev.bpf.c */
	FILE_OVERLAY = 3,  /* overlay.bpf.c */
	FILE_PARSE = 4,    /* parse.h */
	FILE_FLOW = 5,     /* flow.h */
	FILE_POLICY = 6,   /* policy.h */
	FILE_SERVICE = 7,  /* service.h */
	FILE_NAT = 8,      /* nat.h */
	FILE_FORWARD = 9,  /* forward.h */
	FILE_FRAGMENT = 10,  /* fragment.h */
	FILE_ERROR = 11,     /* error.h */
	FILE_NEIGHBOUR = 12, /* neighbour.h */
	FILE_DELIVER = 13,   /* deliver.h */
	FILE_REWRITE = 14,   /* rewrite.h */
	FILE_STEPS = 15,     /* steps.h */
	FILE_SUBSTITUTE = 16, /* substitute.h */
	FILE_MASQUERADE_PORT = 17, /* masquerade_port.bpf.c */
	FILE_ICMP_ERROR = 18, /* icmp_error.bpf.c */
	FILE_SENDER = 19,     /* sender.h */
	FILE_SERVE = 20,      /* serve.bpf.c */
	FILE_ANSWER = 21,     /* answer.bpf.c */
	FILE_COME_BACK = 22, /* come_back.bpf.c */
};

#endif
