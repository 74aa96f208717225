/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Service addresses at the socket: connect() to a service is connect() to a backend, and no packet ever bears the
 * service's address. Attached to the node's cgroup, so it holds for pods and for the node's own programs.
 *
 * A socket of IPv6 that speaks to ::ffff:a.b.c.d speaks IPv4, and says so in the very form of our maps. */
#include "plexus.h"

#define CALL_GOES_ON 1
#define CALL_IS_REFUSED 0 /* EPERM to the caller */

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

static __always_inline int refuse(void)
{
	__u32 index = DROP_NO_BACKEND * 2 + EGRESS;
	struct counter *counter = counters.lookup(&index);

	if (counter)
		counter->packets++;
	return CALL_IS_REFUSED;
}

/* Point the call at a backend if it goes to a service. */
static __always_inline int to_backend(struct bpf_sock_addr *ctx, bool is_ip6)
{
	struct service_key key = {};
	struct backend_key slot = {};
	struct sock_reverse_key reverse_key = {};
	struct sock_reverse reverse = {};
	struct service *service;
	struct backend *backend;

	read_address(ctx, &key.address, is_ip6);
	key.port = ctx->user_port;
	key.protocol = ctx->protocol;
	service = services.lookup(&key);
	if (!service)
		return CALL_GOES_ON;
	if (!service->backends)
		return refuse();
	slot.service = service->number;
	slot.slot = bpf_get_prandom_u32() % service->backends;
	backend = backends.lookup(&slot);
	if (!backend || is_ip4(&backend->address) != is_ip4(&key.address))
		return refuse();
	reverse_key.cookie = bpf_get_socket_cookie(ctx);
	reverse_key.address = backend->address;
	reverse_key.port = backend->port;
	reverse.address = key.address;
	reverse.port = key.port;
	sock_reverse.update(&reverse_key, &reverse);
	write_address(ctx, &backend->address, is_ip6);
	ctx->user_port = backend->port;
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
	return to_backend(ctx, false);
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
	return to_backend(ctx, true);
}

int recvmsg6(struct bpf_sock_addr *ctx)
{
	return to_service(ctx, true);
}

int getpeername6(struct bpf_sock_addr *ctx)
{
	return to_service(ctx, true);
}
