/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Steps: what is rare on a packet's way, or large, is a program of its own to which the programs at the hooks jump
 * (bpf_tail_call). It has its own stack and its own share of what the verifier will go through.
 *
 * A step is a number here, and a function of the same name in small letters. Nothing else lists it: limits.py reads
 * this file. What caller and step know of the packet is in `in_hand`, so both must have the same layout of it: each
 * generation of programs (what the loader compiles at a time) has a pair of these maps of its own, filled before any
 * program that jumps is at a hook. Programs of an earlier generation jump to steps of theirs until they are gone. */
#ifndef PLEXUS_STEPS_H
#define PLEXUS_STEPS_H

#undef THIS_FILE
#define THIS_FILE FILE_STEPS

enum step {
	STEP_REJECT = 0, /* answer a packet that no Service takes; it has its reason to be dropped already */
	STEP_MASQUERADE_PORT = 1, /* give the packet's connection a port to leave by, and send it on */
	STEP_ICMP_ERROR = 2, /* judge an ICMP error by the packet that it quotes, translate both, and send it on */
	STEP_SERVE = 3, /* lead what comes from outside to a backend of the Service that it calls */
	STEP_ANSWER = 4, /* back to who called from outside, from a backend elsewhere */
	STEP_COME_BACK = 5, /* choose a backend for a client whom its Service wants back at the same, and begin anew */
	STEP_FROM_POD = 6, /* that */
	STEP_ANSWER_LINK = 7, /* answer ARP or a neighbour solicitation for an address of a Service */
};

#define STEPS_MAX 16 /* room in the array; 8 bytes each */

MAP("prog", __u32, __u32, steps, STEPS_MAX, OF_GENERATION, 0);

/* Each CPU's packet in hand. In a map and not on the stack: the verifier does not follow values in maps, so paths that
 * differ in them only are walked once (with 16 kinds of packets else more than its million steps). A program runs to its
 * end on its CPU before another begins: bottom halves are off. On a real-time kernel that is not enough: load/loader.py
 * refuses those. */
MAP("percpu_array", __u32, struct packet, in_hand, 1, OF_GENERATION, 0);

static __always_inline struct packet *take(__u8 direction)
{
	__u32 zero = 0;
	struct packet *p = in_hand.lookup(&zero);

	if (p) {
		__builtin_memset(p, 0, offsetof(struct packet, time));
		p->direction = direction;
	}
	return p;
}

/* The packet that the program which jumped here had in hand. */
static __always_inline struct packet *go_on_with(void)
{
	__u32 zero = 0;

	return in_hand.lookup(&zero);
}

/* Jump to a step, which has the last word on the packet. It comes back only where the step is not there (somebody has
 * emptied the slot; it is put back within seconds): then nobody has judged the packet to its end. */
static __always_inline int jump(struct __sk_buff *skb, struct packet *p, enum step step)
{
	steps.call(skb, step);
	return DROP(p, DROP_MISSED_TAIL_CALL);
}

/* `error`: ERROR_*, where it was met. */
static __always_inline int jump_with_error(struct __sk_buff *skb, struct packet *p, __u8 error)
{
	p->error = error;
	return jump(skb, p, STEP_ICMP_ERROR);
}

#endif
