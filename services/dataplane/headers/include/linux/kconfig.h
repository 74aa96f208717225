/* What bcc's helpers expect from a kernel tree, and no more: our programs then load on any kernel without its headers. */
#ifndef PLEXUS_KCONFIG_H
#define PLEXUS_KCONFIG_H

#include <linux/types.h>
#include <linux/stddef.h>

typedef __u8 u8;
typedef __s8 s8;
typedef __u16 u16;
typedef __s16 s16;
typedef __u32 u32;
typedef __s32 s32;
typedef __u64 u64;
typedef __s64 s64;
typedef unsigned long size_t;
typedef unsigned long uintptr_t;
typedef _Bool bool;

#define true 1
#define false 0
#define NULL ((void *)0)
#define CONFIG_BPF_SYSCALL 1

#undef __always_inline
#define __always_inline inline __attribute__((always_inline))

#endif
