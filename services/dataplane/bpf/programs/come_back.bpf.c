/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The step for a client whom its Service wants back at the same backend (session affinity): that one is its choice, or a new
 * one where it has none. Then the packet, of which nothing was changed yet, begins anew and finds the choice. So the programs
 * that balance have nothing of this but a comparison; it is the first packet of a connection alone that comes here. */
#include "plexus.h"
#include "devices.h"
#include "parse.h"
#include "fragment.h"
#include "steps.h"
#include "events.h"
#include "policy.h"
#include "flow.h"
#include "affinity.h"

#undef THIS_FILE
#define THIS_FILE FILE_COME_BACK

/* As `choose` in service.h, which an evicted entry comes back by. */
static __always_inline bool choose_anew(struct packet *p, struct choice *choice)
{
	struct backend_key key = { .service = p->frontend.number };
	struct backend *backend;

	if (!p->frontend.backends) /* never: the verifier wants to hear it */
		return REFUSE(p, DROP_NO_BACKEND);
	key.slot = hash_of_ends(p) % p->frontend.backends;
	backend = backends.lookup(&key);
	if (!backend)
		return REFUSE(p, DROP_NO_BACKEND);
	choice->address = backend->address;
	choice->port = backend->port;
	keep_affinity(&p->called.client, &choice->address, choice->port, p->now);
	return true;
}

static __always_inline bool find_choice(struct packet *p, struct choice *choice)
{
	struct affinity_key *client = &p->called.client;
	struct affinity *known;

	ask_affinity(client, &p->frontend);
	client->is_namespace = 0;
	client->client = p->source;
	known = known_affinity(&p->frontend, client, p->now, &p->called.lives);
	if (!known)
		return choose_anew(p, choice);
	choice->address = known->address;
	choice->port = known->port;
	return true;
}

int come_back(struct __sk_buff *skb)
{
	struct packet *p = go_on_with();
	struct translation *t;
	int action;

	if (!p)
		return TC_ACT_SHOT;
	t = &p->called;
	p->comes_back = 0;
	t->choice.epoch = p->state.epoch;
	t->choice.substitute = 0;
	if (!find_choice(p, &t->choice))
		action = REJECT ? jump(skb, p, STEP_REJECT) : TC_ACT_SHOT;
	else if (choices.update(&t->key, &t->choice))
		action = DROP(p, DROP_CT_INSERT);
	else
		action = jump(skb, p, p->direction == INGRESS ? STEP_SERVE : STEP_FROM_POD);
	return finish(skb, p, action);
}
