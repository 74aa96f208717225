/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Service addresses at the socket: connect() to a service is connect() to a backend, and no packet ever bears the
 * service's address. Attached to the node's cgroup, so it holds for pods and for the node's own programs. */
#include "plexus.h"

#define CALL_GOES_ON 1
#define CALL_IS_REFUSED 0 /* EPERM to the caller */

static __always_inline void count_refused(void)
{
	__u32 index = DROP_NO_BACKEND * 2 + EGRESS;
	struct counter *counter = counters.lookup(&index);

	if (counter)
		counter->packets++;
}

/* Point the call at a backend if it goes to a service. */
static __always_inline int to_backend(struct bpf_sock_addr *ctx)
{
	struct service_key key = {
		.address = ctx->user_ip4,
		.port = ctx->user_port,
		.protocol = ctx->protocol,
	};
	struct backend_key slot = {};
	struct sock_reverse_key reverse_key = {};
	struct sock_reverse reverse = {};
	struct service *service = services.lookup(&key);
	struct backend *backend;

	if (!service)
		return CALL_GOES_ON;
	if (!service->backends) {
		count_refused();
		return CALL_IS_REFUSED;
	}
	slot.service = service->number;
	slot.slot = bpf_get_prandom_u32() % service->backends;
	backend = backends.lookup(&slot);
	if (!backend) {
		count_refused();
		return CALL_IS_REFUSED;
	}
	reverse_key.cookie = bpf_get_socket_cookie(ctx);
	reverse_key.address = backend->address;
	reverse_key.port = backend->port;
	reverse.address = key.address;
	reverse.port = key.port;
	sock_reverse.update(&reverse_key, &reverse);
	ctx->user_ip4 = backend->address;
	ctx->user_port = backend->port;
	return CALL_GOES_ON;
}

/* Show the service where the socket sees its backend. */
static __always_inline int to_service(struct bpf_sock_addr *ctx)
{
	struct sock_reverse_key key = {
		.cookie = bpf_get_socket_cookie(ctx),
		.address = ctx->user_ip4,
		.port = ctx->user_port,
	};
	struct sock_reverse *reverse = sock_reverse.lookup(&key);

	if (reverse) {
		ctx->user_ip4 = reverse->address;
		ctx->user_port = reverse->port;
	}
	return CALL_GOES_ON;
}

int connect4(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx);
}

int sendmsg4(struct bpf_sock_addr *ctx)
{
	return to_backend(ctx);
}

int recvmsg4(struct bpf_sock_addr *ctx)
{
	return to_service(ctx);
}

int getpeername4(struct bpf_sock_addr *ctx)
{
	return to_service(ctx);
}
