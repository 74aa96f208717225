/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Service addresses at the socket: connect() to a service is connect() to a backend, and no packet ever bears the
 * service's address. Attached to the node's cgroup, so it holds for pods and for the node's own programs.
 *
 * Replies are known by the backend alone, so of all that one socket has addressed at one backend (the backend itself, or
 * services that lead to it) they bear what it addressed last. A flow's first packet looks for a backend that is not so
 * shared; where there is none, who needs to tell replies apart takes a socket for each, as the DNS resolver does.
 *
 * A socket of IPv6 that speaks to ::ffff:a.b.c.d speaks IPv4, and says so in the very form of our maps. */
#include "plexus.h"
#include "frontend.h"
#include "affinity.h"

#define CALL_GOES_ON 1
#define CALL_IS_REFUSED 0 /* EPERM to the caller, unless bpf_set_retval says otherwise */
#define CONNECTION_REFUSED 111 /* ECONNREFUSED */

static __always_inline void read_address(struct bpf_sock_addr *ctx, struct address *address, bool is_ip6)
{
	if (is_ip6) {
		address->word[0] = ctx->user_ip6[0];
		address->word[1] = ctx->user_ip6[1];
		address->word[2] = ctx->user_ip6[2];
		address->word[3] = ctx->user_ip6[3];
	} else {
		set_ip4(address, ctx->user_ip4);
	}
}

static __always_inline void write_address(struct bpf_sock_addr *ctx, const struct address *address, bool is_ip6)
{
	if (is_ip6) {
		ctx->user_ip6[0] = address->word[0];
		ctx->user_ip6[1] = address->word[1];
		ctx->user_ip6[2] = address->word[2];
		ctx->user_ip6[3] = address->word[3];
	} else {
		ctx->user_ip4 = address->word[3];
	}
}

/* The calls of this socket go on as they are: its packets meet the same Services on their way (socketLB.hostNamespaceOnly). */
static __always_inline bool is_passed_over(struct bpf_sock_addr *ctx)
{
	return HOOKED_NAMESPACE && bpf_get_netns_cookie(ctx) != HOOKED_NAMESPACE;
}

/* The caller learns at once that no backend is there; or by time, as it were with packets: they are dropped on their way. */
static __always_inline int refuse(const struct address *called)
{
	__u32 index = DROP_NO_BACKEND * 2 + EGRESS;
	struct counter *counter = counters.lookup(&index);

	if (!REJECT && is_of_services(called))
		return CALL_GOES_ON;
	if (counter)
		counter->packets++;
	if (REJECT && SET_RETVAL)
		bpf_set_retval(-CONNECTION_REFUSED);
	return CALL_IS_REFUSED;
}

/* Replies of this backend bear the service's address. Writes only what changes. */
static __always_inline void answer_as(struct sock_reverse_key *from, const struct service_key *at)
{
	struct sock_reverse *known = sock_reverse.lookup(from);
	struct sock_reverse as = {
		.address = at->address, .port = at->port, .protocol = at->protocol, .is_datagram = 1
	};

	if (!known || known->port != at->port || !is_same(&known->address, &at->address))
		sock_reverse.update(from, &as);
}

static __always_inline struct backend *backend_in(struct service *service, __u32 slot, const struct service_key *at)
{
	struct backend_key key = { .service = service->number, .slot = slot };
	struct backend *backend = backends.lookup(&key);

	return backend && is_ip4(&backend->address) == is_ip4(&at->address) ? backend : NULL;
}

/* A network namespace is one client: a pod, or the node itself. Returns the tick that it is. */
static __always_inline __u32 read_client(struct bpf_sock_addr *ctx, struct affinity_key *client,
                                         const struct service *service)
{
	__u64 cookie = bpf_get_netns_cookie(ctx);

	ask_affinity(client, service);
	client->is_namespace = 1;
	client->client.word[2] = cookie >> 32;
	client->client.word[3] = (__u32)cookie;
	return bpf_ktime_get_coarse_ns() >> TICK_SHIFT;
}

/* connect(): point the call at a backend if it goes to a service. */
static __always_inline int to_backend(struct bpf_sock_addr *ctx, bool is_ip6)
{
	struct service_key key = {};
	struct sock_reverse_key reverse_key = {};
	struct affinity_key client = {};
	struct living_key lives;
	struct sock_reverse reverse = {};
	struct affinity *known = NULL;
	struct service *service;
	struct backend *backend;
	__u32 now = 0;

	if (is_passed_over(ctx))
		return CALL_GOES_ON;
	read_address(ctx, &key.address, is_ip6);
	key.port = ctx->user_port;
	key.protocol = ctx->protocol;
	service = service_at(&key);
	reverse_key.cookie = bpf_get_socket_cookie(ctx);
	if (!service) { /* connect() of UDP sends nothing yet: who asks so by which address it would send is answered */
		if (key.protocol != IPPROTO_UDP)
			return is_of_services(&key.address) ? refuse(&key.address) : CALL_GOES_ON;
		reverse_key.address = key.address;
		reverse_key.port = key.port;
		if (sock_reverse.lookup(&reverse_key)) /* it had this backend by a service before */
			sock_reverse.delete(&reverse_key);
		return CALL_GOES_ON;
	}
	if (!service->backends)
		return refuse(&key.address);
	if (service->affinity) {
		now = read_client(ctx, &client, service);
		known = known_affinity(service, &client, now, &lives);
	}
	if (known) {
		reverse_key.address = known->address;
		reverse_key.port = known->port;
	} else {
		backend = backend_in(service, bpf_get_prandom_u32() % service->backends, &key);
		if (!backend)
			return refuse(&key.address);
		reverse_key.address = backend->address;
		reverse_key.port = backend->port;
		if (service->affinity)
			keep_affinity(&client, &reverse_key.address, reverse_key.port, now);
	}
	reverse.address = key.address;
	reverse.port = key.port;
	reverse.protocol = key.protocol;
	sock_reverse.update(&reverse_key, &reverse);
	write_address(ctx, &reverse_key.address, is_ip6);
	ctx->user_port = reverse_key.port;
	return CALL_GOES_ON;
}

#define NO_BACKEND 0
#define SHARED 1 /* this socket speaks to it for another service */
#define FREE 2

/* Take the backend of a slot: `from` is left at it. */
static __always_inline int take(struct service *service, __u32 slot, const struct service_key *at,
                                struct sock_reverse_key *from)
{
	struct backend *backend = backend_in(service, slot, at);
	struct sock_reverse *known;

	if (!backend)
		return NO_BACKEND;
	from->address = backend->address;
	from->port = backend->port;
	known = sock_reverse.lookup(from);
	return known && (known->port != at->port || !is_same(&known->address, &at->address)) ? SHARED : FREE;
}

/* A backend for a new flow of a socket, by which its replies are known: one by chance, or, where this socket speaks to it
 * for another service already, one of the next two. Written out: kernels before 6.7 see no end of a loop here. */
static __always_inline bool pick(struct service *service, const struct service_key *at, struct sock_reverse_key *from)
{
	__u32 slot = bpf_get_prandom_u32() % service->backends;
	int found = take(service, slot, at, from);

	if (found == SHARED)
		found = take(service, (slot + 1) % service->backends, at, from);
	if (found == SHARED)
		found = take(service, (slot + 2) % service->backends, at, from);
	return found != NO_BACKEND;
}

/* The same where the service wants the client to come back: to one backend, which this socket may then share. */
static __always_inline bool pick_again(struct bpf_sock_addr *ctx, struct service *service, const struct service_key *at,
                                       struct sock_reverse_key *from)
{
	struct affinity_key client = {};
	__u32 now = read_client(ctx, &client, service);
	struct living_key lives;
	struct affinity *known = known_affinity(service, &client, now, &lives);

	if (known) {
		from->address = known->address;
		from->port = known->port;
		return true;
	}
	if (!pick(service, at, from))
		return false;
	keep_affinity(&client, &from->address, from->port, now);
	return true;
}

/* The backend that this flow has, if its service still has it. */
static __always_inline bool keeps(struct choice *kept, struct service *service, struct node_state *state)
{
	struct living_key key = {};

	if (!kept)
		return false;
	if ((__s32)(kept->epoch - state->services) >= 0)
		return true;
	key.service = service->number;
	key.address = kept->address;
	key.port = kept->port;
	if (!living.lookup(&key))
		return false;
	kept->epoch = state->epoch;
	return true;
}

/* sendmsg() with an address. A socket and the service that it sends to are one flow: it stays with its backend while that
 * is the service's. A backend that is spoken to itself, past every service, answers as itself from then on. */
static __always_inline int send_to_backend(struct bpf_sock_addr *ctx, bool is_ip6)
{
	struct sock_reverse_key flow = {}, from = {};
	struct service_key key = {};
	struct choice fresh = {};
	struct node_state *state;
	struct service *service;
	struct choice *kept;
	__u32 index = 0;

	if (is_passed_over(ctx))
		return CALL_GOES_ON;
	read_address(ctx, &key.address, is_ip6);
	key.port = ctx->user_port;
	key.protocol = ctx->protocol;
	from.cookie = bpf_get_socket_cookie(ctx);
	service = service_at(&key);
	if (!service) { /* also an unused port: a pod that answers itself through its Service sends there; else tc drops it */
		from.address = key.address;
		from.port = key.port;
		if (sock_reverse.lookup(&from))
			sock_reverse.delete(&from);
		return CALL_GOES_ON;
	}
	if (!service->backends)
		return refuse(&key.address);
	flow.cookie = from.cookie;
	flow.address = key.address;
	flow.port = key.port;
	state = node_state.lookup(&index);
	if (!state) /* never: the verifier wants to hear it */
		return CALL_GOES_ON;
	fresh.epoch = state->epoch; /* before a backend is read: a loss in between is noticed by the next datagram */
	kept = sock_choices.lookup(&flow);
	if (keeps(kept, service, state)) {
		from.address = kept->address;
		from.port = kept->port;
	} else {
		if (service->affinity ? !pick_again(ctx, service, &key, &from) : !pick(service, &key, &from))
			return refuse(&key.address);
		fresh.address = from.address;
		fresh.port = from.port;
		sock_choices.update(&flow, &fresh);
	}
	answer_as(&from, &key);
	write_address(ctx, &from.address, is_ip6);
	ctx->user_port = from.port;
	return CALL_GOES_ON;
}

/* Show the service where the socket sees its backend. */
static __always_inline int to_service(struct bpf_sock_addr *ctx, bool is_ip6)
{
	struct sock_reverse_key key = {};
	struct sock_reverse *reverse;

	key.cookie = bpf_get_socket_cookie(ctx);
	read_address(ctx, &key.address, is_ip6);
	key.port = ctx->user_port;
	reverse = sock_reverse.lookup(&key);
	if (reverse) {
		write_address(ctx, &reverse->address, is_ip6);
		ctx->user_port = reverse->port;
	}
	return CALL_GOES_ON;
}

int connect4(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx, false);
}

int sendmsg4(struct bpf_sock_addr *ctx)
{
	return send_to_backend(ctx, false);
}

int recvmsg4(struct bpf_sock_addr *ctx)
{
	return to_service(ctx, false);
}

int getpeername4(struct bpf_sock_addr *ctx)
{
	return to_service(ctx, false);
}

int connect6(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx, true);
}

int sendmsg6(struct bpf_sock_addr *ctx)
{
	return send_to_backend(ctx, true);
}

int recvmsg6(struct bpf_sock_addr *ctx)
{
	return to_service(ctx, true);
}

int getpeername6(struct bpf_sock_addr *ctx)
{
	return to_service(ctx, true);
}
