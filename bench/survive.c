/*
 * What survives a restart: TCP streams that exchange a numbered message every few milliseconds and numbered UDP packets
 * that come back, from one place to another. Both ends are one thread each and answer at once.
 *
 *   survive server ADDRESS PORT                                    echoes TCP and UDP until killed; prints "ready"
 *   survive client ADDRESS PORT STREAMS EVERY_MS PACKETS_PER_SECOND
 *
 * The client prints "ready" when all streams are connected. Each line on its standard input begins a phase of that name
 * (a word); what is measured belongs to the phase in which it was sent. The end of the input ends it: it waits for what
 * is still under way and prints one JSON line.
 *
 * JSON: {"streams": N, "broken": streams that ended, "phases": {NAME: {
 *   "exchanges": answered messages, "longest_exchange_seconds": of a message, with those that were never answered,
 *   "sent": UDP packets, "lost": never came back, "twice": came back more than once,
 *   "longest_silence_seconds": between two UDP packets that came back}}}
 * Exit status: 0 done, 1 a network call failed at the start (said on stderr), 2 usage.
 *
 * Both run before everything of ordinary priority, or a busy machine would show as a stall of the network. What is left
 * of that shows in a quiet phase of the same run.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define BUFFER_BYTES (32 << 20) /* of the UDP sockets: seconds of packets, so that a reader that waits loses none */
#define PACKETS_MAX (1 << 22)
#define STREAMS_MAX 1024
#define PHASES_MAX 16
#define NAME_BYTES 32
#define TICK_MS 1
#define BURST_MAX 32 /* a client that was not run for a while makes no flood of what it missed */
#define LAST_WAIT_SECONDS 2.0
#define EVENTS 64

struct message {
	uint64_t number;
	uint32_t phase;
	uint32_t pad;
};

struct phase {
	char name[NAME_BYTES];
	uint64_t exchanges, sent, back, twice;
	double longest_exchange, longest_silence;
};

struct stream {
	int fd; /* -1: ended */
	uint64_t number;
	size_t got;
	double sent_at;
	int waits; /* for an answer */
	uint32_t phase;
	char answer[sizeof(struct message)];
};

static struct phase phases[PHASES_MAX];
static uint32_t phase; /* the current one */
static struct stream streams[STREAMS_MAX];
static unsigned int stream_count, broken;
static uint8_t seen[PACKETS_MAX];
static uint64_t next_number;
static double heard_at; /* when the last UDP packet came back */

static void fail(const char *what)
{
	fprintf(stderr, "survive: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void usage(void)
{
	fprintf(stderr, "usage: survive server ADDRESS PORT\n"
	                "       survive client ADDRESS PORT STREAMS EVERY_MS PACKETS_PER_SECOND\n");
	exit(2);
}

static double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec + at.tv_nsec / 1e9;
}

static void say_ready(void)
{
	puts("ready");
	fflush(stdout);
}

static struct addrinfo *parse_address(const char *address, const char *port)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV };
	struct addrinfo *found;
	int wrong = getaddrinfo(address, port, &hints, &found);

	if (wrong) {
		fprintf(stderr, "survive: %s port %s: %s\n", address, port, gai_strerror(wrong));
		exit(2);
	}
	return found;
}

static void watch(int epoll, int fd, uint64_t as)
{
	struct epoll_event event = { .events = EPOLLIN, .data.u64 = as };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		fail("epoll");
}

static int udp_socket(int family)
{
	int size = BUFFER_BYTES;
	int fd = socket(family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		fail("socket");
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)))
		fail("receive buffer");
	return fd;
}

static void no_delay(int fd)
{
	int on = 1;

	if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)))
		fail("setsockopt");
}

/* ---- server ---- */

static void echo_packets(int fd)
{
	struct sockaddr_storage from;
	socklen_t size = sizeof(from);
	char packet[2048];
	ssize_t got;

	while ((got = recvfrom(fd, packet, sizeof(packet), 0, (struct sockaddr *)&from, &size)) >= 0) {
		sendto(fd, packet, got, 0, (struct sockaddr *)&from, size);
		size = sizeof(from);
	}
}

static void echo_stream(int fd)
{
	char data[4096];
	ssize_t got;

	while ((got = read(fd, data, sizeof(data))) > 0)
		if (write(fd, data, got) != got)
			break;
	if (got == 0 || (got < 0 && errno != EAGAIN))
		close(fd);
}

static void serve(const struct addrinfo *at)
{
	struct epoll_event events[EVENTS];
	int on = 1, epoll = epoll_create1(EPOLL_CLOEXEC);
	int packets = udp_socket(at->ai_family);
	int listener = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (listener < 0 || epoll < 0)
		fail("socket");
	if (setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)))
		fail("setsockopt");
	no_delay(listener);
	if (bind(listener, at->ai_addr, at->ai_addrlen) || bind(packets, at->ai_addr, at->ai_addrlen))
		fail("bind");
	if (listen(listener, STREAMS_MAX))
		fail("listen");
	watch(epoll, listener, listener);
	watch(epoll, packets, packets);
	say_ready();
	for (;;) {
		int count = epoll_wait(epoll, events, EVENTS, -1);
		for (int i = 0; i < count; i++) {
			int fd = events[i].data.u64, made;
			if (fd == packets)
				echo_packets(fd);
			else if (fd != listener)
				echo_stream(fd);
			else
				while ((made = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0)
					watch(epoll, made, made);
		}
	}
}

/* ---- client ---- */

static void end_stream(struct stream *s)
{
	close(s->fd);
	s->fd = -1;
	broken++;
}

static void took(struct stream *s, double at)
{
	struct phase *p = &phases[s->phase];

	if (at - s->sent_at > p->longest_exchange)
		p->longest_exchange = at - s->sent_at;
}

static void send_message(struct stream *s)
{
	struct message m = { .number = s->number, .phase = phase };

	s->sent_at = now();
	s->phase = phase;
	s->waits = 1;
	s->got = 0;
	if (write(s->fd, &m, sizeof(m)) != sizeof(m))
		end_stream(s);
}

static void hear_answer(struct stream *s)
{
	struct message m;
	ssize_t got;

	if (s->fd < 0)
		return;
	got = read(s->fd, s->answer + s->got, sizeof(m) - s->got);
	if (got < 0 && errno == EAGAIN)
		return;
	if (got <= 0) {
		end_stream(s);
		return;
	}
	s->got += got;
	if (s->got < sizeof(m))
		return;
	memcpy(&m, s->answer, sizeof(m));
	if (m.number != s->number) { /* a stream whose bytes are others is as good as broken */
		end_stream(s);
		return;
	}
	took(s, now());
	phases[s->phase].exchanges++;
	s->number++;
	s->waits = 0;
}

static void send_packets(int fd, unsigned int count)
{
	while (count-- && next_number < PACKETS_MAX) {
		struct message m = { .number = next_number, .phase = phase };
		if (send(fd, &m, sizeof(m), 0) != sizeof(m) && (errno == EAGAIN || errno == ENOBUFS))
			return; /* no room here: not sent, so not lost either; what is refused for any other reason is */
		next_number++;
		phases[phase].sent++;
	}
}

static void hear_packets(int fd)
{
	struct message m;

	while (recv(fd, &m, sizeof(m), 0) == sizeof(m)) {
		double at = now();
		if (m.number >= next_number || m.phase >= PHASES_MAX)
			continue;
		if (heard_at && at - heard_at > phases[phase].longest_silence)
			phases[phase].longest_silence = at - heard_at;
		heard_at = at;
		if (seen[m.number])
			phases[m.phase].twice++;
		else
			phases[m.phase].back++;
		seen[m.number] = 1;
	}
}

/* Whether the input goes on. */
static int read_phase(void)
{
	char name[NAME_BYTES];
	ssize_t got = read(STDIN_FILENO, name, sizeof(name) - 1);

	if (got <= 0)
		return 0;
	name[got] = 0;
	name[strcspn(name, "\r\n \"\\")] = 0;
	if (phase + 1 < PHASES_MAX)
		strcpy(phases[++phase].name, name);
	return 1;
}

static void connect_all(const struct addrinfo *to, int epoll)
{
	for (unsigned int i = 0; i < stream_count; i++) {
		int fd = socket(to->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
		if (fd < 0)
			fail("socket");
		no_delay(fd);
		if (connect(fd, to->ai_addr, to->ai_addrlen))
			fail("connect");
		if (fcntl(fd, F_SETFL, O_NONBLOCK))
			fail("fcntl");
		streams[i].fd = fd;
		watch(epoll, fd, i);
	}
}

static void report(void)
{
	const char *comma = "";

	printf("{\"streams\": %u, \"broken\": %u, \"phases\": {", stream_count, broken);
	for (uint32_t i = 0; i <= phase; i++) {
		struct phase *p = &phases[i];
		printf("%s\"%s\": {\"exchanges\": %llu, \"longest_exchange_seconds\": %.6f, \"sent\": %llu, "
		       "\"lost\": %llu, \"twice\": %llu, \"longest_silence_seconds\": %.6f}",
		       comma, p->name, (unsigned long long)p->exchanges, p->longest_exchange,
		       (unsigned long long)p->sent, (unsigned long long)(p->sent - p->back),
		       (unsigned long long)p->twice, p->longest_silence);
		comma = ", ";
	}
	puts("}}");
}

static unsigned int waiting(void)
{
	unsigned int found = 0;

	for (unsigned int i = 0; i < stream_count; i++)
		found += streams[i].fd >= 0 && streams[i].waits;
	return found;
}

static int all_back(void)
{
	uint64_t sent = 0, back = 0;

	for (uint32_t i = 0; i <= phase; i++) {
		sent += phases[i].sent;
		back += phases[i].back;
	}
	return sent == back && !waiting();
}

static void run(const struct addrinfo *to, double every, double packets_per_second)
{
	enum { TIMER = STREAMS_MAX, PACKETS, INPUT };
	struct itimerspec tick = { { 0, TICK_MS * 1000000 }, { 0, TICK_MS * 1000000 } };
	struct epoll_event events[EVENTS];
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	int packets = udp_socket(to->ai_family);
	double ends_at = 0, owed = 0, last = now();

	if (epoll < 0 || timer < 0 || timerfd_settime(timer, 0, &tick, NULL))
		fail("timer");
	if (connect(packets, to->ai_addr, to->ai_addrlen))
		fail("connect");
	strcpy(phases[0].name, "start");
	connect_all(to, epoll);
	watch(epoll, timer, TIMER);
	watch(epoll, packets, PACKETS);
	watch(epoll, STDIN_FILENO, INPUT);
	say_ready();
	while (!ends_at || (now() < ends_at && !all_back())) {
		int count = epoll_wait(epoll, events, EVENTS, 100);
		for (int i = 0; i < count; i++) {
			uint64_t which = events[i].data.u64, expired;
			if (which == PACKETS) {
				hear_packets(packets);
			} else if (which == INPUT) {
				if (!read_phase()) {
					epoll_ctl(epoll, EPOLL_CTL_DEL, STDIN_FILENO, NULL);
					ends_at = now() + LAST_WAIT_SECONDS;
				}
			} else if (which != TIMER) {
				hear_answer(&streams[which]);
			} else if (read(timer, &expired, sizeof(expired)) == sizeof(expired) && !ends_at) {
				double at = now();
				owed += (at - last) * packets_per_second;
				last = at;
				if (owed > BURST_MAX)
					owed = BURST_MAX;
				send_packets(packets, (unsigned int)owed);
				owed -= (unsigned int)owed;
				for (unsigned int s = 0; s < stream_count; s++)
					if (streams[s].fd >= 0 && !streams[s].waits && at - streams[s].sent_at >= every)
						send_message(&streams[s]);
			}
		}
	}
	for (unsigned int s = 0; s < stream_count; s++)
		if (streams[s].fd >= 0 && streams[s].waits) {
			took(&streams[s], now());
			end_stream(&streams[s]);
		}
	report();
}

int main(int count, char **arguments)
{
	struct sched_param first = { .sched_priority = 1 };

	signal(SIGPIPE, SIG_IGN);
	sched_setscheduler(0, SCHED_RR, &first); /* if we may */
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* whoever started us is gone: so are we */
	if (count == 4 && !strcmp(arguments[1], "server"))
		serve(parse_address(arguments[2], arguments[3]));
	if (count != 7 || strcmp(arguments[1], "client"))
		usage();
	stream_count = atoi(arguments[4]);
	if (stream_count > STREAMS_MAX)
		usage();
	run(parse_address(arguments[2], arguments[3]), atof(arguments[5]) / 1000, atof(arguments[6]));
	return 0;
}
