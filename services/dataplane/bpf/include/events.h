/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What user space learns of packets: counters of everything, events of few. One exit for every program. */
#ifndef PLEXUS_EVENTS_H
#define PLEXUS_EVENTS_H

/* Emit an event unless this CPU has sent its share of the type in this window. */
static __always_inline void emit(struct __sk_buff *skb, struct packet *p, __u32 type)
{
	struct event_rate *rate = event_rate.lookup(&type);
	struct event *event;
	__u64 window = p->time >> EVENT_WINDOW_SHIFT;
	__u64 wake = p->time >> EVENT_WAKE_SHIFT;

	if (!rate)
		return;
	if (rate->window != window) {
		rate->window = window;
		rate->sent = 0;
	}
	if (rate->sent >= (type == EVENT_DROP ? EVENTS_PER_WINDOW : STARTS_PER_WINDOW)) {
		rate->lost++;
		return;
	}
	rate->sent++;
	event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		rate->lost++;
		return;
	}
	event->at = p->time;
	event->source_identity = p->source_identity;
	event->destination_identity = p->destination_identity;
	event->source = p->source;
	event->destination = p->destination;
	event->source_port = p->source_port;
	event->destination_port = p->destination_port;
	event->protocol = p->protocol;
	event->type = type;
	event->reason = p->reason;
	event->direction = p->direction;
	event->policy = p->policy;
	event->cookie = p->cookie;
	event->length = skb->len;
	event->line = p->line;
	event->file = p->file;
	event->pad = 0;
	if (is_icmp(p->protocol)) { /* the ports of the ICMP world: identifier and type */
		if (p->icmp_kind == ICMP_IS_REPLY)
			event->source_port = p->destination_port;
		event->destination_port = bpf_htons(p->icmp_type);
	}
	/* A wake-up for each event is what observing costs elsewhere; the reader drains by time once it is awake. */
	if (rate->woken != wake) {
		rate->woken = wake;
		events.ringbuf_submit(event, BPF_RB_FORCE_WAKEUP);
	} else {
		events.ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	}
}

static __always_inline void count(struct __sk_buff *skb, __u32 reason, __u32 direction)
{
	__u32 index = reason * 2 + (direction & 1);
	struct counter *counter = counters.lookup(&index);

	if (counter) {
		counter->packets++;
		counter->bytes += skb->len;
	}
}

/* The end of every program: count the packet, tell of it, return what becomes of it. */
static __always_inline int finish(struct __sk_buff *skb, struct packet *p, int action)
{
	if (action != TC_ACT_SHOT)
		p->reason = FORWARDED;
	count(skb, p->reason, p->direction);
	if (OBSERVED && (action == TC_ACT_SHOT || p->told_as))
		emit(skb, p, action == TC_ACT_SHOT ? EVENT_DROP : p->told_as);
	return action;
}

/* Is there what only some nodes have, and others need not look for? SERVES_*. */
static __always_inline bool serves(__u32 what)
{
	__u32 zero = 0;
	struct node_state *state = node_state.lookup(&zero);

	return state && state->serves & what;
}

static __always_inline void read_clock(struct packet *p)
{
	__u32 zero = 0;
	struct node_state *state = node_state.lookup(&zero);

	p->time = bpf_ktime_get_coarse_ns();
	p->now = p->time >> TICK_SHIFT;
	if (!state) { /* the verifier wants to hear it */
		__builtin_memset(&p->state, 0, sizeof(p->state));
		return;
	}
	state = __builtin_assume_aligned(state, 8); /* as the kernel keeps values: two fields by one load */
	__builtin_memcpy(&p->state, state, offsetof(struct node_state, ahead));
	if (TUNNEL_INDEX)
		p->state.ahead = state->ahead;
}

#endif
