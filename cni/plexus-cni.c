/* The CNI plugin of Plexus: hands the runtime's request to the node's dataplane and prints what it answers.
 *
 * It decides nothing, so a running node needs no new executable when the dataplane is updated. Over the unix stream
 * socket $PLEXUS_CNI_SOCKET go, with every length little-endian:
 *
 *   request  u32 length of the rest | "CNI_COMMAND=ADD\0CNI_IFNAME=eth0\0...\0" "\0" | standard input
 *            with the first byte, as SCM_RIGHTS: CNI_NETNS, opened, when it can be opened
 *   answer   u32 length of the rest | u8 exit status | JSON for standard output
 *
 * A DEL is done, for the runtime, when nobody serves the socket but a dataplane has been there: the request is left in the
 * directory $PLEXUS_CNI_SOCKET.deleted, which a dataplane makes, and carries out before it serves the socket again. A pod
 * can end while the node's dataplane is away.
 *
 * VERSION is answered here. An error found here is a CNI error on standard output and exit status 1. Every wait has an
 * end: a runtime that asks for STATUS has its answer within two seconds.
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
#define ANSWER_MILLISECONDS 60000  /* a runtime gives up later than this, so it sees our error and not its own */
#define STATUS_MILLISECONDS 1500   /* all of STATUS: who is not ready by then is not available */
#define INPUT_MILLISECONDS 10000   /* for standard input; a runtime writes it at once, a terminal never ends it */
#define VERSION_MILLISECONDS 1000  /* the same for VERSION, which can be told without it */
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

#define NEWEST "1.1.0"
#define VERSIONS 4

extern char **environ;

static const char *const supported[VERSIONS] = { "0.3.1", "0.4.0", "1.0.0", NEWEST };

static char asked_version[16]; /* of standard input; "" when it says none */

/* Bytes of the character that begins here; 0: this is no UTF-8 (RFC 3629). */
static int character_bytes(const unsigned char *at)
{
	int bytes = *at < 0x80                  ? 1
	            : *at >= 0xc2 && *at < 0xe0 ? 2
	            : *at >= 0xe0 && *at < 0xf0 ? 3
	            : *at >= 0xf0 && *at < 0xf5 ? 4
	                                        : 0;

	for (int next = 1; next < bytes; next++)
		if ((at[next] & 0xc0) != 0x80) /* so is the end of the text */
			return 0;
	if ((*at == 0xe0 && at[1] < 0xa0) || (*at == 0xed && at[1] >= 0xa0) || (*at == 0xf0 && at[1] < 0x90) ||
	    (*at == 0xf4 && at[1] >= 0x90)) /* written longer than it need be, half a pair, past the last */
		return 0;
	return bytes;
}

static void print_quoted(const char *text)
{
	const unsigned char *at = (const unsigned char *)text;

	putchar('"');
	while (*at) {
		int bytes = character_bytes(at);

		if (!bytes) { /* any byte may stand in a path; JSON is UTF-8 */
			printf("\\ufffd");
			at++;
		} else if (*at == '"' || *at == '\\') {
			printf("\\%c", *at++);
		} else if (*at < 0x20) {
			printf("\\u%04x", *at++);
		} else {
			while (bytes--)
				putchar(*at++);
		}
	}
	putchar('"');
}

/* The version that an error is told in: the asked one if it is ours. */
static const char *version_in_use(void)
{
	for (int place = 0; place < VERSIONS; place++)
		if (strcmp(supported[place], asked_version) == 0)
			return asked_version;
	return "1.0.0";
}

/* A CNI error on standard output; the process ends. `number` is an errno or 0. */
static void __attribute__((noreturn)) fail(enum code code, const char *message, const char *subject, int number)
{
	char details[4608];

	snprintf(details, sizeof(details), "%s%s%s", subject, number ? ": " : "", number ? strerror(number) : "");
	printf("{\"cniVersion\":\"%s\",\"code\":%d,\"msg\":", version_in_use(), code);
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

static int command_is(const char *command)
{
	return strcmp(variable("CNI_COMMAND", ""), command) == 0;
}

/* The node is not there or went away: the runtime is to ask again. STATUS has a code of its own for that. */
static void __attribute__((noreturn)) fail_unavailable(const char *message, const char *subject, int number)
{
	fail(command_is("STATUS") ? CODE_NOT_AVAILABLE : CODE_TRY_AGAIN, message, subject, number);
}

/* Whoever is there is not the node. */
static void __attribute__((noreturn)) fail_garbled(void)
{
	fail(command_is("STATUS") ? CODE_NOT_AVAILABLE : CODE_IO,
	     "the Plexus dataplane of this node answered with what is no answer: is PLEXUS_CNI_SOCKET another program's "
	     "socket?",
	     variable("PLEXUS_CNI_SOCKET", DEFAULT_SOCKET), 0);
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

static struct timespec after(long milliseconds)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	at.tv_sec += milliseconds / 1000;
	at.tv_nsec += milliseconds % 1000 * 1000000;
	if (at.tv_nsec >= 1000000000) {
		at.tv_sec++;
		at.tv_nsec -= 1000000000;
	}
	return at;
}

/* Milliseconds until `deadline`, at least 0. */
static int left(const struct timespec *deadline)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	long milliseconds = (deadline->tv_sec - now.tv_sec) * 1000 + (deadline->tv_nsec - now.tv_nsec) / 1000000;
	return milliseconds > 0 ? (int)milliseconds : 0;
}

/* Returns 1 when there is something to read or write, 0 when it is too late. */
static int is_ready(int descriptor, short events, const struct timespec *deadline)
{
	struct pollfd waiting = { .fd = descriptor, .events = events };
	int ready;

	do
		ready = poll(&waiting, 1, left(deadline));
	while (ready < 0 && errno == EINTR);
	if (ready < 0)
		fail(CODE_IO, "cannot wait", "poll", errno);
	return ready;
}

/* Until its end. `is_optional`: what cannot be read, or not in time, is as good as nothing. */
static void add_standard_input(struct buffer *request, const struct timespec *deadline, int is_optional)
{
	size_t total = 0;

	for (;;) {
		if (!is_ready(STDIN_FILENO, POLLIN, deadline)) {
			if (is_optional)
				return;
			fail(CODE_IO, "standard input has not ended in time: close it after the network configuration",
			     "standard input", ETIMEDOUT);
		}
		ssize_t got = read(STDIN_FILENO, reserve(request, 65536), 65536);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0 && !is_optional)
			fail(CODE_IO, "cannot read the network configuration from standard input", "standard input",
			     errno);
		if (got <= 0)
			return;
		request->used += (size_t)got;
		total += (size_t)got;
		if (total > MAX_CONFIGURATION)
			fail(CODE_CONFIGURATION, "the network configuration is too long: 1 MiB at most",
			     "standard input", E2BIG);
	}
}

static const char *after_space(const char *at, const char *end)
{
	while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r'))
		at++;
	return at;
}

/* Remember the outermost `cniVersion` of a JSON text, if it is one: digits and dots. Whether the rest is JSON is for
 * the dataplane to say. */
static void find_version(const char *at, const char *end)
{
	static const char name[] = "cniVersion";
	int depth = 0;

	for (; at < end; at++) {
		const char *text = at + 1;

		depth += (*at == '{' || *at == '[') - (*at == '}' || *at == ']');
		if (*at != '"')
			continue;
		for (at = text; at < end && *at != '"'; at++)
			at += *at == '\\';
		if (at >= end)
			return;
		if (depth != 1 || (size_t)(at - text) != strlen(name) || memcmp(text, name, strlen(name)) != 0)
			continue;
		const char *colon = after_space(at + 1, end);
		const char *value = colon < end && *colon == ':' ? after_space(colon + 1, end) : end;

		if (value >= end || *value != '"')
			continue;
		size_t length = 0;

		for (value++; value + length < end && strchr("0123456789.", value[length]) && value[length]; length++)
			;
		if (length < sizeof(asked_version) && value + length < end && value[length] == '"') {
			memcpy(asked_version, value, length);
			asked_version[length] = '\0';
		}
	}
}

/* Leave a DEL for the next dataplane of this node, whole or not at all. Returns 0 when there is no such directory, or no
 * room: then the runtime is to ask again. Names sort by time. What is left there goes with a reboot, as the pods do. */
static int leave(const char *socket_path, const struct buffer *request)
{
	char place[4096], fresh[4200];
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	int length = snprintf(place, sizeof(place), "%s.deleted/%020lld%09ld-%d", socket_path, (long long)now.tv_sec,
	                      now.tv_nsec, getpid());
	if (length < 0 || (size_t)length >= sizeof(place))
		return 0;
	snprintf(fresh, sizeof(fresh), "%s.new", place);
	int file = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (file < 0)
		return 0;
	size_t written = 4; /* the length of the frame is not in a file */

	while (written < request->used) {
		ssize_t done = write(file, request->bytes + written, request->used - written);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			break;
		written += (size_t)done;
	}
	if (close(file) == 0 && written == request->used && rename(fresh, place) == 0)
		return 1;
	unlink(fresh);
	return 0;
}

static int connect_to(const char *path, const struct buffer *request)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int node = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (node < 0)
		fail(CODE_IO, "cannot make a unix socket", path, errno);
	if (strlen(path) >= sizeof(address.sun_path))
		fail(CODE_ENVIRONMENT, "PLEXUS_CNI_SOCKET is too long for a unix socket: 107 bytes at most", path,
		     ENAMETOOLONG);
	strcpy(address.sun_path, path);
	if (connect(node, (struct sockaddr *)&address, sizeof(address)) != 0) {
		int why = errno;

		if (command_is("DEL") && (why == ENOENT || why == ECONNREFUSED) && leave(path, request))
			exit(0);
		fail_unavailable("the Plexus dataplane of this node does not answer: start it, or set "
		                 "PLEXUS_CNI_SOCKET to its socket; then try again",
		                 path, why);
	}
	return node;
}

static void wait_for(int node, short events, const struct timespec *deadline)
{
	if (!is_ready(node, events, deadline))
		fail_unavailable(
			"the Plexus dataplane of this node did not answer in time: see its log, then try again",
			command_is("STATUS") ? "no answer within 1.5 s" : "no answer within 60 s", ETIMEDOUT);
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

static int tell_version(const struct buffer *input)
{
	find_version(input->bytes, input->bytes + input->used);
	printf("{\"cniVersion\":\"%s\",\"supportedVersions\":[", *asked_version ? asked_version : NEWEST);
	for (int place = 0; place < VERSIONS; place++)
		printf("%s\"%s\"", place ? "," : "", supported[place]);
	puts("]}");
	return fflush(stdout) ? 1 : 0;
}

int main(void)
{
	struct buffer input = { 0 }, request = { 0 };
	struct timespec deadline = after(STATUS_MILLISECONDS);
	struct timespec input_deadline = after(command_is("VERSION") ? VERSION_MILLISECONDS : INPUT_MILLISECONDS);

	reserve(&input, 1);
	add_standard_input(&input, command_is("STATUS") ? &deadline : &input_deadline, command_is("VERSION"));
	if (command_is("VERSION"))
		return tell_version(&input);
	find_version(input.bytes, input.bytes + input.used);
	reserve(&request, 4);
	request.used = 4;
	add_variables(&request);
	memcpy(reserve(&request, input.used), input.bytes, input.used);
	request.used += input.used;
	put_u32(request.bytes, request.used - 4);

	const char *path = variable("CNI_NETNS", NULL);
	/* Gone is fine: DEL must work without. ADD is refused by the dataplane, which knows what it needs. */
	int namespace = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
	int node = connect_to(variable("PLEXUS_CNI_SOCKET", DEFAULT_SOCKET), &request);

	if (!command_is("STATUS"))
		deadline = after(ANSWER_MILLISECONDS);
	send_request(node, &request, namespace, &deadline);

	unsigned char head[5];

	receive(node, head, sizeof(head), &deadline);
	uint32_t length = get_u32(head);
	if (length < 1 || length > MAX_ANSWER)
		fail_garbled();

	struct buffer answer = { 0 };

	receive(node, reserve(&answer, length), length - 1, &deadline);
	if (length > 1 && *answer.bytes != '{')
		fail_garbled();
	print_all(answer.bytes, length - 1);
	return head[4];
}
