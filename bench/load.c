/*
 * The load tool of the benches: one TCP server and one TCP client, blocking, one connection at a time, so that what is
 * measured is the kernel's path between two namespaces and nothing of ours.
 *
 *   load server stream|rr|crr ADDRESS PORT [CPU]             serves until killed; prints "ready" once it listens
 *   load client stream|rr|crr ADDRESS PORT SECONDS [CPU]     prints one JSON line and ends
 *
 *   stream   the client writes as fast as it can; the server answers with the number of bytes that arrived
 *   rr       one byte there, one byte back, on one connection
 *   crr      connect, one byte there, one byte back, close. The server closes first, as most servers of short
 *            connections do: the client's port is free at once, so ports never run out and no kernel setting is touched.
 *
 * JSON: {"count": exchanges or connections, "bytes": bytes that arrived, "seconds": elapsed, "worst_seconds": longest one,
 *        "cpu_seconds": processor time of the client, with what the kernel did for packets in it}
 * Exit status: 0 done, 1 a network call failed (said on stderr), 2 usage.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Large enough that system calls are not the cost, small enough to stay in the second-level cache. */
#define STREAM_CHUNK_BYTES (128 * 1024)
#define ANSWER_TIMEOUT_SECONDS 5
#define BACKLOG 1024

enum mode { STREAM, RR, CRR };

struct result {
	uint64_t count;
	uint64_t bytes;
	double worst;
};

static char chunk[STREAM_CHUNK_BYTES];

static void fail(const char *what)
{
	if (errno == EINPROGRESS || errno == EAGAIN) /* how a timeout of connect, read and write is told */
		errno = ETIMEDOUT;
	fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void usage(void)
{
	fprintf(stderr, "usage: load server stream|rr|crr ADDRESS PORT [CPU]\n"
	                "       load client stream|rr|crr ADDRESS PORT SECONDS [CPU]\n");
	exit(2);
}

static double read_clock(clockid_t clock)
{
	struct timespec at;

	clock_gettime(clock, &at);
	return at.tv_sec + at.tv_nsec / 1e9;
}

static double now(void)
{
	return read_clock(CLOCK_MONOTONIC);
}

static enum mode mode_of(const char *name)
{
	if (!strcmp(name, "stream"))
		return STREAM;
	if (!strcmp(name, "rr"))
		return RR;
	if (!strcmp(name, "crr"))
		return CRR;
	usage();
	return STREAM;
}

static void pin_to(const char *cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(atoi(cpu), &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		fail("pin to CPU");
}

static struct addrinfo *parse_address(const char *address, const char *port)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV };
	struct addrinfo *found;
	int wrong = getaddrinfo(address, port, &hints, &found);

	if (wrong) {
		fprintf(stderr, "load: %s port %s: %s\n", address, port, gai_strerror(wrong));
		exit(2);
	}
	return found;
}

static void set_flag(int fd, int level, int option)
{
	int on = 1;

	if (setsockopt(fd, level, option, &on, sizeof(on)))
		fail("setsockopt");
}

static void read_fully(int fd, void *into, size_t size)
{
	char *at = into;

	while (size) {
		ssize_t got = read(fd, at, size);
		if (got == 0)
			errno = ECONNRESET;
		if (got <= 0)
			fail("read");
		at += got;
		size -= got;
	}
}

/* ---- server ---- */

static void serve_stream(int fd)
{
	uint64_t total = 0;
	ssize_t got;

	while ((got = read(fd, chunk, sizeof(chunk))) > 0)
		total += got;
	if (write(fd, &total, sizeof(total)) != sizeof(total))
		perror("load: report");
}

/* A client that goes away ends its connection, never the server. */
static void serve_exchanges(int fd, int once)
{
	char byte;

	while (read(fd, &byte, 1) == 1)
		if (write(fd, &byte, 1) != 1 || once)
			break;
}

static void serve(enum mode mode, const struct addrinfo *at)
{
	int listener = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (listener < 0)
		fail("socket");
	set_flag(listener, SOL_SOCKET, SO_REUSEADDR);
	set_flag(listener, IPPROTO_TCP, TCP_NODELAY); /* accepted sockets inherit it */
	if (bind(listener, at->ai_addr, at->ai_addrlen))
		fail("bind");
	if (listen(listener, BACKLOG))
		fail("listen");
	puts("ready");
	fflush(stdout);
	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0)
			fail("accept");
		if (mode == STREAM)
			serve_stream(fd);
		else
			serve_exchanges(fd, mode == CRR);
		close(fd);
	}
}

/* ---- client ---- */

static int connect_to(const struct addrinfo *to)
{
	struct timeval patience = { .tv_sec = ANSWER_TIMEOUT_SECONDS };
	int fd = socket(to->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		fail("socket");
	set_flag(fd, IPPROTO_TCP, TCP_NODELAY);
	if (setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)))
		fail("setsockopt");
	if (connect(fd, to->ai_addr, to->ai_addrlen))
		fail("connect");
	return fd;
}

static void exchange(int fd)
{
	char byte = 'x';

	if (write(fd, &byte, 1) != 1)
		fail("write");
	read_fully(fd, &byte, 1);
}

static struct result run_stream(const struct addrinfo *to, double until)
{
	struct result result = { 0 };
	int fd = connect_to(to);

	while (now() < until) {
		if (write(fd, chunk, sizeof(chunk)) < 0)
			fail("write");
		result.count++;
	}
	shutdown(fd, SHUT_WR);
	read_fully(fd, &result.bytes, sizeof(result.bytes));
	close(fd);
	return result;
}

static void note(struct result *result, double took)
{
	result->count++;
	result->bytes++;
	if (took > result->worst)
		result->worst = took;
}

static struct result run_rr(const struct addrinfo *to, double until)
{
	struct result result = { 0 };
	int fd = connect_to(to);
	double before = now();

	while (before < until) {
		exchange(fd);
		double after = now();
		note(&result, after - before);
		before = after;
	}
	close(fd);
	return result;
}

static struct result run_crr(const struct addrinfo *to, double until)
{
	struct result result = { 0 };
	double before = now();

	while (before < until) {
		char none;
		int fd = connect_to(to);
		exchange(fd);
		if (read(fd, &none, 1) != 0) /* the server's close */
			fail("close");
		close(fd);
		double after = now();
		note(&result, after - before);
		before = after;
	}
	return result;
}

int main(int count, char **arguments)
{
	if (count < 5)
		usage();
	int is_server = !strcmp(arguments[1], "server");
	if (!is_server && (strcmp(arguments[1], "client") || count < 6))
		usage();
	enum mode mode = mode_of(arguments[2]);
	struct addrinfo *address = parse_address(arguments[3], arguments[4]);
	int cpu_at = is_server ? 5 : 6;
	if (count > cpu_at)
		pin_to(arguments[cpu_at]);
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* whoever started us is gone: so are we */
	if (is_server)
		serve(mode, address);

	double cpu_began = read_clock(CLOCK_PROCESS_CPUTIME_ID), began = now(), until = began + atof(arguments[5]);
	struct result result = mode == STREAM ? run_stream(address, until)
	                       : mode == RR   ? run_rr(address, until)
	                                      : run_crr(address, until);
	double seconds = now() - began, cpu_seconds = read_clock(CLOCK_PROCESS_CPUTIME_ID) - cpu_began;
	printf("{\"count\": %llu, \"bytes\": %llu, \"seconds\": %.6f, \"worst_seconds\": %.6f, \"cpu_seconds\": %.6f}\n",
	       (unsigned long long)result.count, (unsigned long long)result.bytes, seconds, result.worst, cpu_seconds);
	return 0;
}
