/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The Internet checksum of packets that are made here (RFC 1071). */
#ifndef PLEXUS_CHECKSUM_H
#define PLEXUS_CHECKSUM_H

/* The checksum from what bpf_csum_diff has summed up. */
static __always_inline __sum16 fold(__s64 sum)
{
	sum = (sum & 0xffff) + ((__u32)sum >> 16);
	sum = (sum & 0xffff) + ((__u32)sum >> 16);
	return ~sum;
}

/* The pseudo-header of either family (RFC 9293, 3.1; RFC 8200, 8.1): IPv4's differs in zeros and ones only, and neither
 * changes the sum. */
static __always_inline __s64 pseudo_header(const struct address *one, const struct address *other, __u32 bytes,
                                           __u8 protocol)
{
	__be32 rest[2] = { bpf_htonl(bytes), bpf_htonl(protocol) };
	__s64 sum = bpf_csum_diff(0, 0, (__be32 *)one->word, sizeof(one->word), 0);

	sum = bpf_csum_diff(0, 0, (__be32 *)other->word, sizeof(other->word), sum);
	return bpf_csum_diff(0, 0, rest, sizeof(rest), sum);
}

#endif
