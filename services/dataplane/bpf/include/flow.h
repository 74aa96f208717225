/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Connections: found, judged when new or when policy has changed, kept.
 *
 * One entry serves both directions of a connection on this node, also between two pods of the node: one look-up a
 * packet, one insertion a connection. */
#ifndef PLEXUS_FLOW_H
#define PLEXUS_FLOW_H

#undef THIS_FILE
#define THIS_FILE FILE_FLOW

/* The key of a pair of ends. Returns whether the source is the low end. */
static __always_inline bool key_of(struct connection_key *key, const struct address *source, __be16 source_port,
                                   const struct address *destination, __be16 destination_port, __u8 protocol)
{
	__u64 swap = is_before(destination, destination_port, source, source_port);
	__u64 ports = source_port | (__u64)destination_port << 16;
	__u64 turned = destination_port | (__u64)source_port << 16;
	__u32 both = ports ^ ((ports ^ turned) & swap), last = protocol;

	/* Both ports, and the protocol with the padding, by one store each: hashing reads words of four bytes, and waits for
	 * stores of less to reach the cache. */
	_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the low port is the lower half");
	__builtin_memcpy(&key->low_port, &both, sizeof(both));
	__builtin_memcpy(&key->protocol, &last, sizeof(last));
#pragma unroll
	for (int i = 0; i < 4; i++) {
		__u32 differ = (source->word[i] ^ destination->word[i]) & swap;

		key->low_address.word[i] = source->word[i] ^ differ;
		key->high_address.word[i] = destination->word[i] ^ differ;
	}
	return !swap;
}

static __always_inline struct connection *connection_at(struct connection_key *key)
{
	return key->protocol == IPPROTO_TCP ? ct_tcp.lookup(key) : ct_any.lookup(key);
}

static __always_inline int keep_connection(struct connection_key *key, struct connection *c)
{
	return key->protocol == IPPROTO_TCP ? ct_tcp.update(key, c) : ct_any.update(key, c);
}

/* For the same two ends always the same on this node, and nobody else can tell it. */
static __always_inline __u32 hash_of_ends(struct packet *p)
{
	__u32 hash = p->state.seed;

	hash = (hash ^ p->source.word[3]) *
	       0x9e3779b1; /* odd numbers without a pattern; the shifts spread the high bits */
	hash ^= hash >> 15;
	hash = (hash ^ p->destination.word[3] ^ p->protocol) * 0x85ebca6b;
	hash ^= hash >> 13;
	hash = (hash ^ p->source_port ^ (__u32)p->destination_port << 16) * 0xc2b2ae35;
	return hash ^ hash >> 16;
}

/* A packet's place in its connection. */
struct flow {
	struct connection_key key;
	struct connection *connection; /* NULL: none that is alive */
	bool source_is_low;
	bool is_contested; /* it would begin where a connection of the other direction is alive */
	__u32 from_origin; /* 1: this packet goes the way of the first one. Not bool: the verifier wants to see `& 1` */
};

/* Its time is up, or further off than any connection's: then it is none, and would be in the way of its ends for ever. Ticks
 * go round: what has expired is the furthest off. */
static __always_inline bool is_over(struct connection *c, struct packet *p)
{
	return c->expires - p->now > CT_LONGEST_TICKS + 1; /* another CPU's clock may be a tick ahead */
}

/* What only the end that begins sends: against the connection's direction, or after its end, it begins another. */
static __always_inline bool begins(struct packet *p)
{
	if (is_icmp(p->protocol))
		return p->icmp_kind == ICMP_IS_ECHO;
	return (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Both ends have finished, or one was reset. Whether that is to be believed, its time tells: see `touch`. */
static __always_inline bool has_ended(struct connection *c)
{
	return c->flags & CT_RESET || (c->flags & (CT_ORIGIN_FIN | CT_REPLY_FIN)) == (CT_ORIGIN_FIN | CT_REPLY_FIN);
}

/* It has ended, and nobody needs it but for what may still come and repeat the end. A reset that anybody may have sent counts
 * once both ends have been silent for as long as the others wait. */
static __always_inline bool is_finished(struct connection *c, struct packet *p)
{
	return has_ended(c) && (__u64)c->expires + CT_TCP_FIN_TICKS <= (__u64)p->now + CT_TCP_TICKS;
}

/* Both ends have spoken, and it has not ended. */
static __always_inline bool is_settled(struct connection *c, struct packet *p)
{
	return c->flags & CT_REPLIED && !(has_ended(c) && c->expires <= p->now + CT_TCP_FIN_TICKS);
}

static __always_inline void find(struct flow *f, struct packet *p)
{
	struct connection *c;

	f->source_is_low =
		key_of(&f->key, &p->source, p->source_port, &p->destination, p->destination_port, p->protocol);
	f->connection = NULL;
	f->is_contested = false;
	f->from_origin = 1;
	p->begins_anew = 0;
	c = connection_at(&f->key);
	if (!c || is_over(c, p))
		return;
	if (f->source_is_low != !!(c->flags & CT_ORIGIN_LOW)) {
		if (begins(p)) {
			p->begins_anew = 1;
			f->is_contested = is_settled(c, p);
			return;
		}
		f->from_origin = 0;
	} else if (c->flags & (CT_RESET | CT_ORIGIN_FIN | CT_REPLY_FIN) && begins(p)) {
		p->begins_anew = 1;
		return; /* the same ports are used again: to be judged as new */
	}
	f->connection = c;
}

static __always_inline __u32 lifetime(__u8 protocol, __u32 flags)
{
	if (protocol != IPPROTO_TCP)
		return CT_ANY_TICKS;
	if (flags & CT_RESET || (flags & (CT_ORIGIN_FIN | CT_REPLY_FIN)) == (CT_ORIGIN_FIN | CT_REPLY_FIN))
		return CT_TCP_FIN_TICKS;
	return flags & CT_REPLIED ? CT_TCP_TICKS : CT_TCP_SYN_TICKS;
}

/* What a packet says of its connection's end. */
static __always_inline __u32 ending(struct packet *p, __u32 from_origin)
{
	if (p->tcp_flags & TCP_RST)
		return CT_RESET;
	if (p->tcp_flags & TCP_FIN)
		return from_origin ? CT_ORIGIN_FIN : CT_REPLY_FIN;
	return 0;
}

/* Does this reset end the connection? Sequence numbers are not kept, so one that anybody may have sent, with any
 * (RFC 5961), is left to the end that it goes to. It counts before that end has answered, and after it has finished. */
static __always_inline bool is_believed(struct flow *f, struct packet *p)
{
	__u32 flags = f->connection->flags;

	return p->vouched || !(flags & CT_REPLIED) || flags & (f->from_origin ? CT_REPLY_FIN : CT_ORIGIN_FIN);
}

/* A packet of the connection has passed. Writes only what changes: most packets write nothing. */
static __always_inline void touch(struct flow *f, struct packet *p)
{
	struct connection *c = f->connection;
	__u32 flags = c->flags;
	__u32 expires;

	if (p->tcp_flags & TCP_RST && !is_believed(f, p)) {
		c->flags = flags | CT_RESET; /* its time goes on as if this had not come */
		return;
	}
	if (!f->from_origin)
		flags |= CT_REPLIED;
	flags &= ~CT_RESET; /* whoever goes on was not reset */
	flags |= ending(p, f->from_origin);
	if (flags != c->flags)
		c->flags = flags;
	expires = p->now + lifetime(p->protocol, flags);
	if (expires != c->expires)
		c->expires = expires;
}

/* Is one epoch before another? They go round. */
static __always_inline bool is_before_epoch(__u32 one, __u32 other)
{
	return (__s32)(one - other) < 0;
}

/* Was it judged under the epoch of this packet? None of the others is after that one (Maps._judge_again), so nothing more
 * need be compared: what most packets find. */
static __always_inline bool is_of_now(struct packet *p, struct connection *c)
{
	return c->epoch == p->state.epoch;
}

/* Is the connection allowed as things are, without being judged again? `one` and `other` are the pods of this node at its
 * ends, NULL for what is none. */
static __always_inline bool is_judged(struct packet *p, struct connection *c, struct endpoint *one,
                                      struct endpoint *other)
{
	__u64 epoch = c->epoch, before;

	if (is_of_now(p, c))
		return true;
	before = epoch - p->state.all; /* the sign of its lower half: one jump for all of them */
	if (one)
		before |= epoch - one->epoch;
	if (other)
		before |= epoch - other->epoch;
	if (TUNNEL_INDEX && c->flags & CT_AHEAD)
		before |= epoch - p->state.ahead;
	return !(before >> 31 & 1);
}

/* Identities of the two ends; 0: not needed so far. */
struct ends {
	__u32 origin;
	__u32 called;
};

/* Egress policy of the pod that began, ingress policy of the pod that was called, whichever of them live here.
 *
 * `protocol` and `port`, the called one's, are the connection's. `origin_identity` 0: look it up. Who is who is left in
 * `who`, for the event. */
static __always_inline bool judge(struct packet *p, struct ends *who, struct endpoint *origin,
                                  const struct address *origin_address, __u32 origin_identity, struct endpoint *called,
                                  const struct address *called_address, __u8 protocol, __be16 port)
{
	who->origin = origin_identity;
	if (origin && origin->flags & ENDPOINT_ENFORCE_EGRESS) {
		who->called = identity_of(called_address, called);
		if (!policy_allows(p, origin->policy, EGRESS, who->called, called_address, protocol, port))
			return false;
	}
	if (called && called->flags & ENDPOINT_ENFORCE_INGRESS) {
		if (!origin_identity)
			origin_identity = identity_of(origin_address, origin);
		who->origin = origin_identity;
		/* The node itself may always reach its pods: it is who starts, probes and stops them. */
		if (origin_identity != IDENTITY_HOST &&
		    !policy_allows(p, called->policy, INGRESS, origin_identity, called_address, protocol, port))
			return false;
	}
	return true;
}

/* The port by which policy knows this packet, were it the first of a connection. */
static __always_inline __be16 policy_port(struct packet *p)
{
	return is_icmp(p->protocol) ? bpf_htons(p->icmp_type + 1) : p->destination_port;
}

/* The same of the packet that this one answers. Only an echo has replies with its identifier. */
static __always_inline __be16 answered_port(struct packet *p)
{
	if (!is_icmp(p->protocol))
		return p->source_port;
	return bpf_htons((p->is_ip6 ? ICMP6_ECHO : ICMP_ECHO) + 1);
}

/* Judge the packet if its connection is new, or if what it was last judged by may not hold any more; keep the connection.
 *
 * `from` and `to` are the pods of this node at either end, NULL for others; `source_identity` 0: look it up. */
static __always_inline bool admit(struct packet *p, struct flow *f, struct endpoint *from, struct endpoint *to,
                                  __u32 source_identity)
{
	struct connection
		fresh = {}; /* here: made where it is needed, the verifier would go through all that follows twice */
	struct ends who = {};
	__u32 known = from && to ? CT_BOTH_HERE : 0;
	bool allowed;

	if (f->connection && is_judged(p, f->connection, from, to)) {
		touch(f, p);
		return true;
	}
	if (f->from_origin) {
		allowed = judge(p, &who, from, &p->source, source_identity, to, &p->destination, p->protocol,
		                policy_port(p));
		p->source_identity = who.origin;
		p->destination_identity = who.called;
	} else {
		allowed = judge(p, &who, to, &p->destination, 0, from, &p->source, p->protocol, answered_port(p));
		p->destination_identity = who.origin;
		if (who.called)
			p->source_identity = who.called;
	}
	/* An entry that was there stays and ages: it knows who began. Without it the next packet of the other end would be
	 * the first of a connection in the other direction, which may be allowed. */
	if (!allowed)
		return false;
	if (TUNNEL_INDEX && p->is_ahead)
		known |= CT_AHEAD;
	if (f->connection) {
		f->connection->way[0] = f->connection->flags & CT_BY_STACK ? WAY_HOST : WAY_UNKNOWN;
		f->connection->way[1] = WAY_UNKNOWN;
		f->connection->epoch = p->state.epoch;
		f->connection->flags = (f->connection->flags & ~(CT_BOTH_HERE | CT_AHEAD)) | known;
		touch(f, p);
		return true;
	}
	if (f->is_contested) /* one packet of a stranger's would end it */
		return REFUSE(p, DROP_UNKNOWN_CT);
	fresh.epoch = p->state.epoch;
	fresh.flags = known | (f->source_is_low ? CT_ORIGIN_LOW : 0);
	/* Of a connection that was here before we were, the first packet that we see may be its last. */
	fresh.flags |= ending(p, 1);
	fresh.expires = p->now + lifetime(p->protocol, fresh.flags);
	if (keep_connection(&f->key, &fresh))
		return REFUSE(p, DROP_CT_INSERT);
	f->connection = connection_at(&f->key);
	if (!f->connection) /* evicted by another CPU in this very moment */
		return REFUSE(p, DROP_CT_INSERT);
	p->told_as = p->policy ? EVENT_POLICY_VERDICT : EVENT_TRACE;
	return true;
}

#endif
