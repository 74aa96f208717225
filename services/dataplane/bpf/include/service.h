/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Services for what the socket hooks did not see: the destination becomes a backend, replies bear the service again. */
#ifndef PLEXUS_SERVICE_H
#define PLEXUS_SERVICE_H

#undef THIS_FILE
#define THIS_FILE FILE_SERVICE

/* So far it goes to no service. */
static __always_inline struct translation *no_translation(struct packet *p)
{
	struct translation *t = &p->called;

	t->port = 0;
	t->is_new = false;
	t->to_itself = false;
	return t;
}

/* The backend that this client has, if it may keep it. A UDP client, or a new TCP connection on the same ports, goes
 * elsewhere when the service has it no more; a TCP connection stays where it is. */
static __always_inline bool keeps(struct packet *p, struct choice *kept, struct service *service)
{
	struct living_key key = { .service = service->number, .port = kept->port, .address = kept->address };

	if (!is_before_epoch(kept->epoch, p->state.services) || (p->protocol == IPPROTO_TCP && !begins(p)))
		return true;
	if (!living.lookup(&key))
		return false;
	kept->epoch = p->state.epoch;
	return true;
}

/* By its ends and not at random: a client whose choice was evicted, by others' many, comes back to where it was, as long as
 * the service has the same backends. */
static __always_inline bool choose(struct packet *p, struct service *service, struct choice *choice)
{
	struct backend_key key = { .service = service->number };
	struct backend *backend = NULL;

	if (service->affinity && service->backends) { /* see come_back.bpf.c */
		p->frontend = *service;
		p->comes_back = 1;
		return false;
	}
	if (service->backends) {
		key.slot = hash_of_ends(p) % service->backends;
		backend = backends.lookup(&key);
	}
	if (!backend) /* or the host's stack would answer for it */
		return REFUSE(p, DROP_NO_BACKEND);
	choice->address = backend->address;
	choice->port = backend->port;
	choice->epoch = p->state.epoch;
	return true;
}

/* The packet goes to no service, and stands in the connection of one that leads to the same backend. */
static __always_inline bool is_in_the_way(struct connection *c, struct flow *f)
{
	return c->flags & CT_TRANSLATED && f->source_is_low == !!(c->flags & CT_ORIGIN_LOW);
}

/* Then what it calls is as good as a service of one backend, which is itself. */
static __always_inline void choose_itself(struct packet *p, struct choice *choice)
{
	choice->address = p->destination;
	choice->port = p->destination_port;
	choice->epoch = p->state.epoch;
}

static __always_inline bool is_backend_itself(struct packet *p, struct choice *kept)
{
	return kept->port == p->destination_port && is_same(&kept->address, &p->destination);
}

/* Between these ends there is another connection: of another service, of none, or begun by the other end. */
static __always_inline bool is_taken(struct packet *p, struct flow *f, struct translation *t)
{
	struct connection *c = p->begins_anew ? connection_at(&f->key) : f->connection;

	return c && !is_with(c, f->source_is_low, &t->address, t->port, t->choice.substitute);
}

/* Find a port for it that no other connection with the backend has; the one that it had, if its choice was lost. */
static __always_inline bool take_another(struct packet *p, struct flow *f, struct translation *t)
{
	__u16 low = -(__u16)f->source_is_low; /* which end's port it is, all ones or 0 */
	struct connection *c;

	if (p->protocol == IPPROTO_SCTP) /* nobody can mend its checksum for another port */
		return REFUSE(p, DROP_NAT_PROTOCOL);
	t->is_found = false;
	for (__u32 number = 0; number <= SUBSTITUTES; number++) { /* bounded loops: kernel 5.3 */
		__be16 port = substitute_of(t->key.client_port, number);

		f->key.low_port ^= (f->key.low_port ^ port) & low;
		f->key.high_port ^= (f->key.high_port ^ port) & ~low;
		c = connection_at(&f->key);
		if (c && !is_over(c, p)) {
			if (!is_with(c, f->source_is_low, &t->address, t->port, number))
				continue;
			t->is_found = true;
			t->free = number;
			break;
		}
		if (!t->is_found) {
			t->is_found = true;
			t->free = number;
		}
	}
	if (!t->is_found)
		return REFUSE(p, DROP_NO_NAT_MAPPING);
	t->choice.substitute = t->free;
	t->is_new = true;
	p->source_port = substitute_of(t->key.client_port, t->free);
	find(f, p);
	return true;
}

/* Send it to the backend of the service that its client has, or to one chosen now; `service` NULL: to whom it calls, by
 * another port. Afterwards `f` is found for the packet as rewritten. */
static __always_inline bool lead(struct __sk_buff *skb, struct packet *p, struct flow *f, struct translation *t,
                                 struct service *service)
{
	struct choice *kept;

	t->address = p->destination;
	t->port = p->destination_port;
	t->key.client = p->source;
	t->key.service = p->destination;
	t->key.client_port = p->source_port;
	t->key.service_port = p->destination_port;
	t->key.protocol = p->protocol;
	kept = choices.lookup(&t->key);
	if (kept && (service ? keeps(p, kept, service) : is_backend_itself(p, kept))) {
		t->choice.address = kept->address;
		t->choice.port = kept->port;
		t->choice.substitute = kept->substitute;
		t->choice.epoch = kept->epoch;
	} else {
		if (!service)
			choose_itself(p, &t->choice);
		else if (!choose(p, service, &t->choice))
			return false;
		t->choice.substitute = 0;
		t->is_new = true;
	}
	t->to_itself = is_same(&t->choice.address, &p->source);
	if (!rewrite_destination(skb, p, &t->choice.address, t->choice.port))
		return false;
	/* Its own backend: from itself the packet would be a martian to it, so the service seems to call, and is answered. */
	if (t->to_itself && !rewrite_source(skb, p, &t->address, p->source_port))
		return false;
	p->source_port = substitute_of(t->key.client_port, t->choice.substitute);
	find(f, p);
	if (is_taken(p, f, t) && !take_another(p, f, t))
		return false;
	return p->source_port == t->key.client_port || write_port(skb, p, true, t->key.client_port, p->source_port);
}

/* If the packet goes to a service, lead it to a backend. `f` was found for the packet as it is. */
static __always_inline bool balance(struct __sk_buff *skb, struct packet *p, struct flow *f, struct translation *t)
{
	struct connection *place = p->begins_anew ? connection_at(&f->key) : f->connection;
	struct service_key at = { .address = p->destination, .port = p->destination_port, .protocol = p->protocol };
	struct service *service;

	if (is_icmp(p->protocol))
		return true;
	service = service_at(&at);
	if (!service) {
		if (!place || !is_in_the_way(place, f))
			return true;
		hold_place(place, p);
	}
	return lead(skb, p, f, t, service);
}

/* The pod answers what it sent to itself, by way of a service: that is who seemed to call. */
static __always_inline bool answers_itself(struct packet *p, struct flow *f)
{
	return f->connection && !f->from_origin && f->connection->flags & CT_TRANSLATED &&
	       is_same(&f->connection->service_address, &p->destination);
}

/* The packet is admitted: keep the choice, and let replies on its connection bear what the client called. */
static __always_inline bool translated(struct packet *p, struct connection *c, struct translation *t)
{
	if (t->is_new && choices.update(&t->key, &t->choice))
		return REFUSE(p, DROP_CT_INSERT);
	if (!t->port) {
		if (c->flags & CT_TRANSLATED) {
			__builtin_memset(&c->service_address, 0, sizeof(c->service_address));
			c->service_port = 0;
			c->flags &= ~CT_TRANSLATED;
			c->substitute = 0;
		}
	} else if (c->service_port != t->port || !is_same(&c->service_address, &t->address)) {
		c->service_address = t->address;
		c->service_port = t->port;
		c->flags |= CT_TRANSLATED;
		c->substitute = t->choice.substitute;
	}
	return true;
}

#endif
