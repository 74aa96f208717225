/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Every map. All are pinned: programs of one node share them and a restart finds them as they were.
 * A changed layout is a new pinned name; load/loader.py refuses a pinned map whose sizes are not these. */
#ifndef PLEXUS_MAPS_H
#define PLEXUS_MAPS_H

#include "limits.h"
#include "types.h"

#define PINNED(name) PIN_DIR "/maps/" name

BPF_TABLE_PINNED("hash", struct endpoint_key, struct endpoint, endpoints, ENDPOINTS_MAX, PINNED("endpoints_v3"),
                 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lpm_trie", struct ipcache_key, struct ipcache_entry, ipcache, IPCACHE_MAX, PINNED("ipcache_v2"),
                 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lpm_trie", struct policy_key, struct policy_entry, policy, POLICY_MAX, PINNED("policy"),
                 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct named_port, __u8, named_ports, NAMED_PORTS_MAX, PINNED("named_ports"),
                 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lru_hash", struct connection_key, struct connection, ct_tcp, CT_TCP_MAX, PINNED("ct_tcp_v3"));
BPF_TABLE_PINNED("lru_hash", struct connection_key, struct connection, ct_any, CT_ANY_MAX, PINNED("ct_any_v3"));
BPF_TABLE_PINNED("lru_hash", struct nat_key, struct nat_entry, nat, NAT_MAX, PINNED("nat_v2"));
BPF_TABLE_PINNED("lpm_trie", struct masq_exclude_key, __u8, masq_exclude, MASQ_EXCLUDE_MAX, PINNED("masq_exclude"),
                 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lru_hash", struct fragment_key, struct fragment, fragments, FRAGMENTS_MAX, PINNED("fragments"));
BPF_TABLE_PINNED("lru_hash", struct choice_key, struct choice, choices, CHOICES_MAX, PINNED("choices_v2"));
BPF_TABLE_PINNED("hash", struct service_key, struct service, services, SERVICES_MAX, PINNED("services_v3"),
                 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct backend_key, struct backend, backends, BACKENDS_MAX, PINNED("backends_v3"),
                 BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("hash", struct living_key, __u8, living, BACKENDS_MAX, PINNED("living"), BPF_F_NO_PREALLOC);
BPF_TABLE_PINNED("lru_hash", struct sock_reverse_key, struct choice, sock_choices, SOCK_CHOICES_MAX,
                 PINNED("sock_choices"));
BPF_TABLE_PINNED("lru_hash", struct sock_reverse_key, struct sock_reverse, sock_reverse, SOCK_REVERSE_MAX,
                 PINNED("sock_reverse_v2"));
BPF_TABLE_PINNED("array", __u32, struct node_state, node_state, 1, PINNED("node_state_v3"));
BPF_TABLE_PINNED("percpu_array", __u32, struct counter, counters, COUNTERS_MAX, PINNED("counters"));
BPF_TABLE_PINNED("percpu_array", __u32, struct event_rate, event_rate, EVENT_TYPES, PINNED("event_rate"));

/* bcc's ring buffer macro cannot pin: this is the same table with a path. */
struct events_table_t {
	int key;
	u32 leaf;
	int (*ringbuf_output)(void *, u64, u64);
	void *(*ringbuf_reserve)(u64);
	void (*ringbuf_discard)(void *, u64);
	void (*ringbuf_submit)(void *, u64);
	u32 max_entries;
};
__attribute__((section("maps/ringbuf:" PINNED("events_v2")))) struct events_table_t events = {
	.max_entries = EVENTS_BYTES,
};

#endif
