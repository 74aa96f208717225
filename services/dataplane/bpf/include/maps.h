/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Every map. All are pinned: programs of one node share them and a restart finds them as they were.
 * A changed layout is a new pinned name; load/loader.py refuses a pinned map whose shape is not this. */
#ifndef PLEXUS_MAPS_H
#define PLEXUS_MAPS_H

#include "constants.h"
#include "limits.h"
#include "types.h"

/* The loader makes each map, with as many entries as the node's settings say, and pins it as maps/<file>. What is compiled
 * has its kind and shape alone. */
#define MAP(kind, key, value, name, entries, file, flags) BPF_F_TABLE(kind, key, value, name, 1, flags)
#define BUFFER(name, bytes, file) BPF_RINGBUF_OUTPUT(name, 1)

MAP("hash", struct endpoint_key, struct endpoint, endpoints, ENDPOINTS_MAX, "endpoints_v3", BPF_F_NO_PREALLOC);
MAP("lpm_trie", struct ipcache_key, struct ipcache_entry, ipcache, IPCACHE_MAX, "ipcache_v2", BPF_F_NO_PREALLOC);
MAP("lpm_trie", struct policy_key, struct policy_entry, policy, POLICY_MAX, "policy", BPF_F_NO_PREALLOC);
MAP("hash", struct named_port, __u8, named_ports, NAMED_PORTS_MAX, "named_ports", BPF_F_NO_PREALLOC);
MAP("lru_hash", struct connection_key, struct connection, ct_tcp, CT_TCP_MAX, "ct_tcp_v3", 0);
MAP("lru_hash", struct connection_key, struct connection, ct_any, CT_ANY_MAX, "ct_any_v3", 0);
MAP("lru_hash", struct nat_key, struct nat_entry, nat, NAT_MAX, "nat_v2", 0);
MAP("lpm_trie", struct masq_exclude_key, __u8, masq_exclude, MASQ_EXCLUDE_MAX, "masq_exclude", BPF_F_NO_PREALLOC);
MAP("hash", __u32, struct device, devices, DEVICES_MAX, "devices", BPF_F_NO_PREALLOC);
MAP("hash", struct l2_answer_key, struct l2_answer, l2_answers, L2_ANSWERS_MAX, "l2_answers", BPF_F_NO_PREALLOC);
MAP("lru_hash", struct fragment_key, struct fragment, fragments, FRAGMENTS_MAX, "fragments", 0);
MAP("lru_hash", struct choice_key, struct choice, choices, CHOICES_MAX, "choices_v2", 0);
MAP("hash", struct service_key, struct service, services, SERVICES_MAX, "services_v3", BPF_F_NO_PREALLOC);
MAP("hash", struct backend_key, struct backend, backends, BACKENDS_MAX, "backends_v3", BPF_F_NO_PREALLOC);
MAP("hash", struct living_key, __u8, living, BACKENDS_MAX, "living", BPF_F_NO_PREALLOC);
MAP("lpm_trie", struct range_key, __u8, source_ranges, SOURCE_RANGES_MAX, "source_ranges", BPF_F_NO_PREALLOC);
MAP("lru_hash", struct affinity_key, struct affinity, affinity, AFFINITY_MAX, "affinity", 0);
MAP("lru_hash", struct sock_reverse_key, struct choice, sock_choices, SOCK_CHOICES_MAX, "sock_choices", 0);
MAP("lru_hash", struct sock_reverse_key, struct sock_reverse, sock_reverse, SOCK_REVERSE_MAX, "sock_reverse_v2", 0);
MAP("array", __u32, struct node_state, node_state, 1, "node_state_v3", 0);
MAP("percpu_array", __u32, struct counter, counters, COUNTERS_MAX, "counters", 0);
MAP("percpu_array", __u32, struct event_rate, event_rate, EVENT_TYPES, "event_rate", 0);
BUFFER(events, EVENTS_BYTES, "events_v2");

#endif
