/* The CNI plugin of Plexus: hands the runtime's request to the node's dataplane and prints what it answers.
 *
 * It decides nothing, so a running node needs no new executable when the dataplane is updated. Over the unix stream
 * socket $PLEXUS_CNI_SOCKET go, with every length little-endian:
 *
 *   request  u32 length of the rest | "CNI_COMMAND=ADD\0CNI_IFNAME=eth0\0...\0" "\0" | standard input
 *            with the first byte, as SCM_RIGHTS: CNI_NETNS, opened, when it can be opened
 *   answer   u32 length of the rest | u8 exit status | JSON for standard output
 *
 * VERSION is answered here. An error found here is a CNI error on standard output and exit status 1.
 * Source: CNI specification 1.1.0, "Section 2: Execution Protocol" and "Section 5: Result Types".
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define DEFAULT_SOCKET "/run/plexus/cni.sock"
#define ANSWER_SECONDS 60          /* a runtime gives up later than this, so it sees our error and not its own */
#define MAX_VARIABLES (64u << 10)  /* bytes of CNI_* variables; the dataplane refuses more */
#define MAX_CONFIGURATION (1u << 20) /* bytes of standard input; the dataplane refuses more */
#define MAX_ANSWER (4u << 20)      /* bytes; far more than any result */

enum code { /* of the specification */
            CODE_ENVIRONMENT = 4,
            CODE_IO = 5,
            CODE_CONFIGURATION = 7,
            CODE_TRY_AGAIN = 11,
            CODE_NOT_AVAILABLE = 50, /* STATUS only */
};

extern char **environ;

static void print_quoted(const char *text)
{
	putchar('"');
	for (const unsigned char *at = (const unsigned char *)text; *at; at++) {
		if (*at == '"' || *at == '\\')
			printf("\\%c", *at);
		else if (*at < 0x20 || *at >= 0x7f) /* any byte may stand in a path; JSON wants UTF-8 */
			printf("\\u%04x", *at);
		else
			putchar(*at);
	}
	putchar('"');
}

/* A CNI error on standard output; the process ends. `number` is an errno or 0. */
static void __attribute__((noreturn)) fail(enum code code, const char *message, const char *subject, int number)
{
	char details[4608];

	snprintf(details, sizeof(details), "%s%s%s", subject, number ? ": " : "", number ? strerror(number) : "");
	printf("{\"cniVersion\":\"1.0.0\",\"code\":%d,\"msg\":", code);
	print_quoted(message);
	printf(",\"details\":");
	print_quoted(details);
	printf("}\n");
	fflush(stdout);
	exit(1);
}

static const char *variable(const char *name, const char *otherwise)
{
	const char *value = getenv(name);

	return value && *value ? value : otherwise;
}

/* The node is not there or went away: the runtime is to ask again. STATUS has a code of its own for that. */
static void __attribute__((noreturn)) fail_unavailable(const char *message, const char *subject, int number)
{
	int asked_for_status = strcmp(variable("CNI_COMMAND", ""), "STATUS") == 0;

	fail(asked_for_status ? CODE_NOT_AVAILABLE : CODE_TRY_AGAIN, message, subject, number);
}

struct buffer {
	char *bytes;
	size_t used, size;
};

/* Room for `more` bytes; returns where they go. */
static char *reserve(struct buffer *buffer, size_t more)
{
	if (buffer->used + more > buffer->size) {
		size_t size = (buffer->used + more) * 2;
		char *bytes = realloc(buffer->bytes, size);

		if (!bytes)
			fail(CODE_IO, "out of memory", "plexus-cni", ENOMEM);
		buffer->bytes = bytes;
		buffer->size = size;
	}
	return buffer->bytes + buffer->used;
}

static void put_u32(char *at, size_t value)
{
	for (int byte = 0; byte < 4; byte++)
		at[byte] = (char)(value >> (8 * byte));
}

static uint32_t get_u32(const unsigned char *at)
{
	return at[0] | at[1] << 8 | at[2] << 16 | (uint32_t)at[3] << 24;
}

static void add_variables(struct buffer *request)
{
	size_t first = request->used;

	for (char **entry = environ; *entry; entry++) {
		size_t length = strlen(*entry) + 1;

		if (strncmp(*entry, "CNI_", 4) != 0)
			continue;
		if (request->used - first + length > MAX_VARIABLES)
			fail(CODE_ENVIRONMENT, "the CNI_* environment variables are too long: 64 KiB at most",
			     "environment", E2BIG);
		memcpy(reserve(request, length), *entry, length);
		request->used += length;
	}
	*reserve(request, 1) = '\0';
	request->used++;
}

static void add_standard_input(struct buffer *request)
{
	size_t total = 0;

	for (;;) {
		ssize_t got = read(STDIN_FILENO, reserve(request, 65536), 65536);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			fail(CODE_IO, "cannot read the network configuration from standard input", "standard input",
			     errno);
		if (got == 0)
			return;
		request->used += (size_t)got;
		total += (size_t)got;
		if (total > MAX_CONFIGURATION)
			fail(CODE_CONFIGURATION, "the network configuration is too long: 1 MiB at most",
			     "standard input", E2BIG);
	}
}

static int connect_to(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int node = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (node < 0)
		fail(CODE_IO, "cannot make a unix socket", path, errno);
	if (strlen(path) >= sizeof(address.sun_path))
		fail(CODE_ENVIRONMENT, "PLEXUS_CNI_SOCKET is too long for a unix socket: 107 bytes at most", path,
		     ENAMETOOLONG);
	strcpy(address.sun_path, path);
	if (connect(node, (struct sockaddr *)&address, sizeof(address)) != 0)
		fail_unavailable("the Plexus dataplane of this node does not answer: start it, or set "
		                 "PLEXUS_CNI_SOCKET to its socket; then try again",
		                 path, errno);
	return node;
}

/* Milliseconds until `deadline`, at least 0. */
static int left(const struct timespec *deadline)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	long milliseconds = (deadline->tv_sec - now.tv_sec) * 1000 + (deadline->tv_nsec - now.tv_nsec) / 1000000;
	return milliseconds > 0 ? (int)milliseconds : 0;
}

static void wait_for(int node, short events, const struct timespec *deadline)
{
	struct pollfd waiting = { .fd = node, .events = events };
	int ready;

	do
		ready = poll(&waiting, 1, left(deadline));
	while (ready < 0 && errno == EINTR);
	if (ready == 0)
		fail_unavailable(
			"the Plexus dataplane of this node did not answer in time: see its log, then try again",
			"no answer within 60 s", ETIMEDOUT);
	if (ready < 0)
		fail(CODE_IO, "cannot wait for the Plexus dataplane", "poll", errno);
}

/* `namespace` is -1, or goes along with the first byte. */
static void send_request(int node, const struct buffer *request, int namespace, const struct timespec *deadline)
{
	size_t sent = 0;

	while (sent < request->used) {
		union {
			struct cmsghdr header;
			char space[CMSG_SPACE(sizeof(int))];
		} control = { 0 };
		struct iovec piece = { request->bytes + sent, request->used - sent };
		struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1 };

		if (sent == 0 && namespace >= 0) {
			message.msg_control = control.space;
			message.msg_controllen = sizeof(control.space);
			struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
			rights->cmsg_level = SOL_SOCKET;
			rights->cmsg_type = SCM_RIGHTS;
			rights->cmsg_len = CMSG_LEN(sizeof(int));
			memcpy(CMSG_DATA(rights), &namespace, sizeof(int));
		}
		ssize_t done = sendmsg(node, &message, MSG_NOSIGNAL);

		if (done >= 0)
			sent += (size_t)done;
		else if (errno == EAGAIN)
			wait_for(node, POLLOUT, deadline);
		else if (errno == EPIPE || errno == ECONNRESET)
			return; /* it refused before it had read all: its answer says why */
		else if (errno != EINTR)
			fail_unavailable("cannot send the request to the Plexus dataplane of this node: try again",
			                 "send", errno);
	}
}

static void receive(int node, void *into, size_t wanted, const struct timespec *deadline)
{
	size_t have = 0;

	while (have < wanted) {
		ssize_t got = recv(node, (char *)into + have, wanted - have, 0);

		if (got > 0)
			have += (size_t)got;
		else if (got == 0 || errno == ECONNRESET)
			fail_unavailable("the Plexus dataplane of this node ended before it answered: try again",
			                 "the connection was closed", 0);
		else if (errno == EAGAIN)
			wait_for(node, POLLIN, deadline);
		else if (errno != EINTR)
			fail_unavailable("cannot read the answer of the Plexus dataplane of this node: try again",
			                 "receive", errno);
	}
}

static void print_all(const char *bytes, size_t length)
{
	while (length) {
		ssize_t done = write(STDOUT_FILENO, bytes, length);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			exit(1);
		bytes += done;
		length -= (size_t)done;
	}
}

int main(void)
{
	if (strcmp(variable("CNI_COMMAND", ""), "VERSION") == 0) {
		puts("{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.3.1\",\"0.4.0\",\"1.0.0\",\"1.1.0\"]}");
		return fflush(stdout) ? 1 : 0;
	}

	struct buffer request = { 0 };

	reserve(&request, 4);
	request.used = 4;
	add_variables(&request);
	add_standard_input(&request);
	put_u32(request.bytes, request.used - 4);

	const char *path = variable("CNI_NETNS", NULL);
	/* Gone is fine: DEL must work without. ADD is refused by the dataplane, which knows what it needs. */
	int namespace = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	int node = connect_to(variable("PLEXUS_CNI_SOCKET", DEFAULT_SOCKET));
	struct timespec deadline;

	clock_gettime(CLOCK_MONOTONIC, &deadline);
	deadline.tv_sec += ANSWER_SECONDS;
	send_request(node, &request, namespace, &deadline);

	unsigned char head[5];

	receive(node, head, sizeof(head), &deadline);
	uint32_t length = get_u32(head);
	if (length < 1 || length > MAX_ANSWER)
		fail(CODE_IO,
		     "the Plexus dataplane of this node answered with a frame of impossible length: is "
		     "PLEXUS_CNI_SOCKET another program's socket?",
		     variable("PLEXUS_CNI_SOCKET", DEFAULT_SOCKET), 0);

	struct buffer answer = { 0 };

	receive(node, reserve(&answer, length), length - 1, &deadline);
	print_all(answer.bytes, length - 1);
	return head[4];
}
