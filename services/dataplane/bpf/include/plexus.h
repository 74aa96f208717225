/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What every program of ours begins with; the order is that of dependence. */
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>

#ifndef offsetof
#define offsetof(type, member) __builtin_offsetof(type, member)
#endif

#include "wire.h"
#include "constants.h"
#include "limits.h"
#include "types.h"
#include "address.h"
#include "reasons.h"
#include "maps.h"
#include "packet.h"
