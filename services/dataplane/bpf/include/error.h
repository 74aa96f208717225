/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* ICMP errors: they pass where the packet that they quote has passed, and are translated as it was. */
#ifndef PLEXUS_ERROR_H
#define PLEXUS_ERROR_H

#undef THIS_FILE
#define THIS_FILE FILE_ERROR

/* Is the connection that an error is about allowed as things are now? The error tells nothing new of it, so neither its
 * epoch nor its ways change. */
static __always_inline bool is_still_allowed(struct packet *p, struct quoted *q, struct connection *c, bool to_origin)
{
	struct address *origin = to_origin ? &q->source : &q->destination;
	struct address *called = to_origin ? &q->destination : &q->source;
	__be16 port = to_origin ? q->destination_port : q->source_port;
	struct endpoint *from = endpoint_at(origin), *to = endpoint_at(called);
	struct ends who = {};

	if (is_judged(p, c, from, to))
		return true;
	if (is_icmp(q->protocol)) /* only an echo has answers */
		port = bpf_htons((to_origin ? q->icmp_type : p->is_ip6 ? ICMP6_ECHO : ICMP_ECHO) + 1);
	return judge(p, &who, from, origin, 0, to, called, q->protocol, port);
}

/* An ICMP error may pass where the packet that it is about has passed and still may, and goes to who sent that
 * (RFC 792). A redirect never does: nobody but the node routes for a pod. The connection; NULL: refused. */
static __always_inline struct connection *admit_error(struct packet *p, struct quoted *q, bool *to_origin)
{
	struct connection_key key;
	struct connection *c;
	bool source_is_low;

	if (!is_same(&q->source, &p->destination) || (!p->is_ip6 && p->icmp_type == ICMP_REDIRECT)) {
		REFUSE(p, DROP_INVALID);
		return NULL;
	}
	source_is_low = key_of(&key, &q->source, q->source_port, &q->destination, q->destination_port, q->protocol);
	c = connection_at(&key);
	if (!c || is_over(c, p)) {
		REFUSE(p, DROP_UNKNOWN_CT);
		return NULL;
	}
	*to_origin = source_is_low == !!(c->flags & CT_ORIGIN_LOW);
	return is_still_allowed(p, q, c, *to_origin) ? c : NULL;
}

/* To who called a service, about the backend: it knows only the service. */
static __always_inline bool error_from_service(struct __sk_buff *skb, struct packet *p, struct quoted *q,
                                               struct connection *c)
{
	if (!(c->flags & CT_TRANSLATED))
		return true;
	if (is_same(&p->source, &q->destination) && !rewrite_source(skb, p, &c->service_address, p->source_port))
		return false;
	if (c->substitute && !write_quoted_port(skb, p, q, true, own_of(q->source_port, c->substitute)))
		return false;
	return rewrite_quoted(skb, p, q, false, &c->service_address, c->service_port);
}

#endif
