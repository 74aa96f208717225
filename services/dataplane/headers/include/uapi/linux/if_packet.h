/* bcc asks for it by this name; the C library's headers have it by the other. */
#include_next <linux/if_packet.h>
